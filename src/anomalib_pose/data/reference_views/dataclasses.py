# SPDX-License-Identifier: Apache-2.0
"""Items and batches of queries: anomalib's, with reference views of the shape and a box around the defect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from anomalib.data import ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch, NumpyImageItem
from torch import Tensor

from anomalib_pose.data.batches import stack_fields


@dataclass
class NumpyViewItem(NumpyImageItem):
    """A ``ViewItem`` of numpy arrays, with the same fields and shapes."""

    reference_images: np.ndarray | None = None
    reference_xyz: np.ndarray | None = None
    box: np.ndarray | None = None
    pair_images: np.ndarray | None = None
    pair_points: np.ndarray | None = None
    shape_id: str | None = None
    pred_box: np.ndarray | None = None
    boxed_query: np.ndarray | None = None


@dataclass
class NumpyViewBatch(NumpyImageBatch):
    """A ``ViewBatch`` of numpy arrays, with the same fields and shapes."""

    item_class: ClassVar[type[NumpyViewItem]] = NumpyViewItem

    reference_images: np.ndarray | None = None
    reference_xyz: np.ndarray | None = None
    box: np.ndarray | None = None
    pair_images: np.ndarray | None = None
    pair_points: np.ndarray | None = None
    shape_id: list[str] | None = None
    pred_box: np.ndarray | None = None
    boxed_query: np.ndarray | None = None


@dataclass
class ViewItem(ImageItem):
    """A query with reference views of its defect-free shape; each of the fields below may be None.

    Args:
        reference_images: views of the shape (n, 3, 256, 256), RGB in [0, 1].
        reference_xyz: position on the shape in each cell of each view (n, 32, 32, 3), in the shape's frame; -1 in
            cells without the shape.
        box: box around the defect (4,): center x, center y, width, height, as fractions of ``image``; zeros if the
            query is good.
        pair_images: two views of the shape (2, 3, 256, 256), in training.
        pair_points: points of the shape visible in both (m, 2, 2), int64: for each point its (row, column) in the
            first and in the second of ``pair_images``.
        shape_id: name of the shape.
        pred_box: box that a model predicted (4,), as ``box``.
        boxed_query: ``image`` with the true and the predicted box drawn in (3, H, W).
    """

    numpy_class: ClassVar[type[NumpyViewItem]] = NumpyViewItem

    reference_images: Tensor | None = None
    reference_xyz: Tensor | None = None
    box: Tensor | None = None
    pair_images: Tensor | None = None
    pair_points: Tensor | None = None
    shape_id: str | None = None
    pred_box: Tensor | None = None
    boxed_query: Tensor | None = None


@dataclass
class ViewBatch(ImageBatch):
    """A batch of ``ViewItem``; each field has a leading dimension B, or is None.

    Args:
        reference_images: views of the shapes (B, n, 3, 256, 256).
        reference_xyz: positions on the shapes in the views' cells (B, n, 32, 32, 3).
        box: boxes around defects (B, 4).
        pair_images: two views of each shape (B, 2, 3, 256, 256).
        pair_points: points visible in both (B, m, 2, 2).
        shape_id: names of the shapes, a list of B.
        pred_box: boxes that a model predicted (B, 4).
        boxed_query: ``image`` with boxes drawn in (B, 3, H, W).
    """

    item_class: ClassVar[type[ViewItem]] = ViewItem
    numpy_class: ClassVar[type[NumpyViewBatch]] = NumpyViewBatch

    reference_images: Tensor | None = None
    reference_xyz: Tensor | None = None
    box: Tensor | None = None
    pair_images: Tensor | None = None
    pair_points: Tensor | None = None
    shape_id: list[str] | None = None
    pred_box: Tensor | None = None
    boxed_query: Tensor | None = None

    @classmethod
    def collate(cls, items: Sequence[ViewItem]) -> "ViewBatch":
        """Stack items; a field that is None in any item is None in the batch. Images are not resized.

        Args:
            items: items with images of one size and equal numbers of views.

        Raises:
            ValueError: if image sizes differ.
        """
        return cls(**stack_fields(items))
