# SPDX-License-Identifier: Apache-2.0
"""Batching of anomalib items without resizing their images, and conversion of stock batches."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from anomalib.data import Batch, ImageBatch, ImageItem
from torch import Tensor
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

    Raises:
        ValueError: if the batch is of another class, as that of another model's datamodule.
    """
    if isinstance(batch, Batch) and not isinstance(batch, batch_class) and type(batch) is not ImageBatch:
        msg = (
            f"Expected batches of the class {batch_class.__name__} or ImageBatch, got {type(batch).__name__}: use a "
            "datamodule for this model."
        )
        raise ValueError(msg)
    if isinstance(batch, ImageBatch) and not isinstance(batch, batch_class):
        return batch_class(**{field.name: getattr(batch, field.name) for field in fields(batch)})
    return batch


def known_mask(masks: Tensor | None, index: int) -> Tensor | None:
    """Return the mask (H, W) of one image, or None if it is unknown.

    Args:
        masks: masks (B, H, W), -1 for an image without a mask; or None.
        index: index of the image in the batch.
    """
    mask = None if masks is None else masks[index]
    return None if mask is None or bool((mask < 0).any()) else mask
