# SPDX-License-Identifier: Apache-2.0
"""anomalib's image items and batches with room for cameras, references and foregrounds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from anomalib.data import ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch, NumpyImageItem
from torch import Tensor
from torch.utils.data import default_collate


@dataclass
class NumpyPoseItem(NumpyImageItem):
    """A ``PoseItem`` of numpy arrays; the fields have the meaning and shapes they have there."""

    camera_to_world: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    reference: np.ndarray | None = None
    estimated_camera_to_world: np.ndarray | None = None
    pose_confidence: np.ndarray | None = None
    foreground: np.ndarray | None = None


@dataclass
class NumpyPoseBatch(NumpyImageBatch):
    """A ``PoseBatch`` of numpy arrays; the fields have the meaning and shapes they have there."""

    item_class: ClassVar[type[NumpyPoseItem]] = NumpyPoseItem

    camera_to_world: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    reference: np.ndarray | None = None
    estimated_camera_to_world: np.ndarray | None = None
    pose_confidence: np.ndarray | None = None
    foreground: np.ndarray | None = None


@dataclass
class PoseItem(ImageItem):
    """An image with what is known of its camera; every further field may be missing.

    Convention:
        OpenCV camera axes; ``p_world = camera_to_world @ p_camera``; the point (0.5, 0.5) is the first pixel's center.

    Args:
        camera_to_world: the true pose (4, 4); of a query it serves evaluation alone.
        intrinsics: K (3, 3) in pixels of ``image`` as it is here.
        reference: rendered defect-free counterpart (3, H, W), RGB in [0, 1].
        estimated_camera_to_world: the pose a model found (4, 4).
        pose_confidence: how far that pose may be trusted, a scalar in [0, 1].
        foreground: how much of each pixel the object covers (H, W), in [0, 1].
    """

    numpy_class: ClassVar[type[NumpyPoseItem]] = NumpyPoseItem

    camera_to_world: Tensor | None = None
    intrinsics: Tensor | None = None
    reference: Tensor | None = None
    estimated_camera_to_world: Tensor | None = None
    pose_confidence: Tensor | None = None
    foreground: Tensor | None = None


@dataclass
class PoseBatch(ImageBatch):
    """A batch of ``PoseItem``; every field has a leading dimension B, or is None.

    Args:
        camera_to_world: true poses (B, 4, 4).
        intrinsics: K (B, 3, 3) in pixels of ``image``.
        reference: rendered defect-free counterparts (B, 3, H, W).
        estimated_camera_to_world: poses a model found (B, 4, 4).
        pose_confidence: confidences of those (B,).
        foreground: how much of each pixel the object covers (B, H, W).
    """

    item_class: ClassVar[type[PoseItem]] = PoseItem
    numpy_class: ClassVar[type[NumpyPoseBatch]] = NumpyPoseBatch

    camera_to_world: Tensor | None = None
    intrinsics: Tensor | None = None
    reference: Tensor | None = None
    estimated_camera_to_world: Tensor | None = None
    pose_confidence: Tensor | None = None
    foreground: Tensor | None = None

    @classmethod
    def collate(cls, items: Sequence[PoseItem]) -> "PoseBatch":
        """Batch of items; a field that not every item has is None.

        Images are never resized here, as anomalib's own batches do: their intrinsics would no longer fit.

        Args:
            items: items with images of one size.

        Raises:
            ValueError: if image sizes differ.
        """
        return cls(**stacked_fields(items))


def widened(batch: Any, batch_class: type[ImageBatch]) -> Any:
    """A stock ``ImageBatch`` as one of a class with room for more; anything else as it is.

    Args:
        batch: what a data loader gave.
        batch_class: subclass of ``ImageBatch``.
    """
    if isinstance(batch, ImageBatch) and not isinstance(batch, batch_class):
        return batch_class(**{field.name: getattr(batch, field.name) for field in fields(batch)})
    return batch


def stacked_fields(items: Sequence[ImageItem]) -> dict[str, Any]:
    """Fields that every item has, stacked, by name.

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
    known = {name: values for name, values in columns.items() if all(value is not None for value in values)}
    return {name: default_collate(values) for name, values in known.items()}
