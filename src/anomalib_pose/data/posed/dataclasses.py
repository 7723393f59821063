# SPDX-License-Identifier: Apache-2.0
"""Items and batches of posed images: anomalib's, with fields for cameras, references and foregrounds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch, NumpyImageItem
from torch import Tensor

from anomalib_pose.data.batches import stack_fields


@dataclass
class NumpyPoseItem(NumpyImageItem):
    """A ``PoseItem`` of numpy arrays, with the same fields and shapes."""

    camera_to_world: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    reference: np.ndarray | None = None
    estimated_camera_to_world: np.ndarray | None = None
    pose_confidence: np.ndarray | None = None
    foreground: np.ndarray | None = None
    stored_size: np.ndarray | None = None


@dataclass
class NumpyPoseBatch(NumpyImageBatch):
    """A ``PoseBatch`` of numpy arrays, with the same fields and shapes."""

    item_class: ClassVar[type[NumpyPoseItem]] = NumpyPoseItem

    camera_to_world: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    reference: np.ndarray | None = None
    estimated_camera_to_world: np.ndarray | None = None
    pose_confidence: np.ndarray | None = None
    foreground: np.ndarray | None = None
    stored_size: np.ndarray | None = None


@dataclass
class PoseItem(ImageItem):
    """An image and its camera; each of the fields below may be None.

    Convention:
        OpenCV camera axes; ``p_world = camera_to_world @ p_camera``; the point (0.5, 0.5) is the first pixel's center.

    Args:
        camera_to_world: true pose (4, 4), float64; the pose of a query serves evaluation alone.
        intrinsics: K (3, 3) in pixels of ``image`` at its present size.
        reference: rendered defect-free counterpart (3, H, W), RGB in [0, 1].
        estimated_camera_to_world: pose that a model estimated (4, 4), float64.
        pose_confidence: confidence of this estimate, a scalar in [0, 1].
        foreground: fraction of each pixel that the object covers (H, W), in [0, 1].
        stored_size: width and height (2,) of the photograph in pixels, before it was resized.
    """

    numpy_class: ClassVar[type[NumpyPoseItem]] = NumpyPoseItem

    camera_to_world: Tensor | None = None
    intrinsics: Tensor | None = None
    reference: Tensor | None = None
    estimated_camera_to_world: Tensor | None = None
    pose_confidence: Tensor | None = None
    foreground: Tensor | None = None
    stored_size: Tensor | None = None


@dataclass
class PoseBatch(ImageBatch):
    """A batch of ``PoseItem``; each field has a leading dimension B, or is None.

    Args:
        camera_to_world: true poses (B, 4, 4).
        intrinsics: K (B, 3, 3) in pixels of ``image``.
        reference: rendered defect-free counterparts (B, 3, H, W).
        estimated_camera_to_world: poses that a model estimated (B, 4, 4).
        pose_confidence: confidences of these estimates (B,).
        foreground: fraction of each pixel that the object covers (B, H, W); -1 for an image without a mask in a batch
            of images with masks.
        stored_size: widths and heights (B, 2) of the photographs in pixels, before they were resized.
    """

    item_class: ClassVar[type[PoseItem]] = PoseItem
    numpy_class: ClassVar[type[NumpyPoseBatch]] = NumpyPoseBatch

    camera_to_world: Tensor | None = None
    intrinsics: Tensor | None = None
    reference: Tensor | None = None
    estimated_camera_to_world: Tensor | None = None
    pose_confidence: Tensor | None = None
    foreground: Tensor | None = None
    stored_size: Tensor | None = None

    @classmethod
    def collate(cls, items: Sequence[PoseItem]) -> "PoseBatch":
        """Stack items; a field that is None in any item is None in the batch.

        Unlike anomalib's own batches, this one never resizes images: their intrinsics would no longer fit.

        Args:
            items: items with images of one size.

        Raises:
            ValueError: if image sizes differ.
        """
        return cls(**stack_fields(items))

    @classmethod
    def collate_masked(cls, items: Sequence[PoseItem]) -> "PoseBatch":
        """Stack items; if some of them have a foreground, that of the others is -1, which means unknown.

        The prediction for an image then does not depend on the other images of its batch.

        Args:
            items: items with images of one size.

        Raises:
            ValueError: if image sizes differ.
        """
        if any(item.foreground is not None for item in items):
            unknown = torch.full(items[0].image.shape[-2:], -1.0)
            items = [item if item.foreground is not None else replace(item, foreground=unknown) for item in items]
        return cls.collate(items)
