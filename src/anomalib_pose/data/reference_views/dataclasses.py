# SPDX-License-Identifier: Apache-2.0
"""anomalib's image items and batches with reference views of the object's shape and a box around its defect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from anomalib.data import ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch, NumpyImageItem
from torch import Tensor

from anomalib_pose.data.posed.dataclasses import stacked_fields


@dataclass
class NumpyViewItem(NumpyImageItem):
    """A ``ViewItem`` of numpy arrays; the fields have the meaning and shapes they have there."""

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
    """A ``ViewBatch`` of numpy arrays; the fields have the meaning and shapes they have there."""

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
    """A query with views of the shape it should have; every further field may be missing.

    Args:
        reference_images: views of the shape (n, 3, 256, 256), RGB in [0, 1].
        reference_xyz: positions on the shape that the cells of each view see (n, 32, 32, 3), -1 where there is none.
        box: box around the defect (4,): middle x, middle y, width, height, as shares of ``image``; zeros if the
            query is good.
        pair_images: two views of the shape (2, 3, 256, 256), in training.
        pair_points: points of the shape that both of them see (m, 2, 2), int64: for each point its (row, column) in
            the first and in the second of ``pair_images``.
        shape_id: name of the shape.
        pred_box: box that a model found (4,), as ``box``.
        boxed_query: ``image`` with the true box and the one found drawn in (3, H, W).
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
    """A batch of ``ViewItem``; every field has a leading dimension B, or is None.

    Args:
        reference_images: views of the shapes (B, n, 3, 256, 256).
        reference_xyz: positions that their cells see (B, n, 32, 32, 3).
        box: boxes around defects (B, 4).
        pair_images: two views of each shape (B, 2, 3, 256, 256).
        pair_points: points that both see (B, m, 2, 2).
        shape_id: names of the shapes, a list of B.
        pred_box: boxes that a model found (B, 4).
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
        """Batch of items; a field that not every item has is None. Images are not resized.

        Args:
            items: items with images of one size and equal numbers of views.

        Raises:
            ValueError: if image sizes differ.
        """
        return cls(**stacked_fields(items))
