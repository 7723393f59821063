# SPDX-License-Identifier: Apache-2.0
"""Batching of anomalib items without resizing their images, and conversion of stock batches."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from anomalib.data import ImageBatch, ImageItem
from torch.utils.data import default_collate


def stack_fields(items: Sequence[ImageItem]) -> dict[str, Any]:
    """Stack the fields of items, by name; a field that is None in any item is left out.

    Args:
        items: items of one class, at least one.

    Raises:
        ValueError: if image sizes differ.
    """
    sizes = {tuple(item.image.shape[-2:]) for item in items}
    if len(sizes) > 1:
        msg = f"Images of one batch should have one (height, width), got {sorted(sizes)}: use a batch size of 1."
        raise ValueError(msg)
    columns = {field.name: [getattr(item, field.name) for item in items] for field in fields(items[0])}
    complete = {name: values for name, values in columns.items() if all(value is not None for value in values)}
    return {name: default_collate(values) for name, values in complete.items()}


def convert_batch(batch: Any, batch_class: type[ImageBatch]) -> Any:
    """Convert anomalib's own ``ImageBatch`` to a subclass with more fields; return anything else unchanged.

    Args:
        batch: output of a data loader.
        batch_class: subclass of ``ImageBatch``.
    """
    if isinstance(batch, ImageBatch) and not isinstance(batch, batch_class):
        return batch_class(**{field.name: getattr(batch, field.name) for field in fields(batch)})
    return batch
