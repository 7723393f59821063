# SPDX-License-Identifier: Apache-2.0
"""Items and batches of point clouds: anomalib's, with fields for a cloud and its rendered views."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from anomalib.data import ImageBatch, ImageItem
from anomalib.data.dataclasses.numpy import NumpyImageBatch, NumpyImageItem
from torch import Tensor

from anomalib_pose.data.batches import stack_fields


@dataclass
class NumpyCloudItem(NumpyImageItem):
    """A ``CloudItem`` of numpy arrays, with the same fields and shapes."""

    points: np.ndarray | None = None
    valid: np.ndarray | None = None
    organized: np.ndarray | None = None
    has_rgb: np.ndarray | None = None
    views: np.ndarray | None = None
    view_masks: np.ndarray | None = None
    pixels: np.ndarray | None = None
    visible: np.ndarray | None = None
    category: str | None = None
    point_scores: np.ndarray | None = None
    object_score: np.ndarray | None = None
    photograph: np.ndarray | None = None
    view_sheet: np.ndarray | None = None
    scored_cloud: np.ndarray | None = None


@dataclass
class NumpyCloudBatch(NumpyImageBatch):
    """A ``CloudBatch`` of numpy arrays, with the same fields and shapes."""

    item_class: ClassVar[type[NumpyCloudItem]] = NumpyCloudItem

    points: np.ndarray | None = None
    valid: np.ndarray | None = None
    organized: np.ndarray | None = None
    has_rgb: np.ndarray | None = None
    views: np.ndarray | None = None
    view_masks: np.ndarray | None = None
    pixels: np.ndarray | None = None
    visible: np.ndarray | None = None
    category: list[str] | None = None
    point_scores: np.ndarray | None = None
    object_score: np.ndarray | None = None
    photograph: np.ndarray | None = None
    view_sheet: np.ndarray | None = None
    scored_cloud: np.ndarray | None = None


@dataclass
class CloudItem(ImageItem):
    """A cloud of one object on a square grid of cells, its photograph and its rendered views.

    ``image`` is the photograph on the same grid, or one of the views if there is no photograph; ``gt_mask`` lies on the
    grid. Grid, photograph and views have one size, 336 by default.

    Args:
        points: positions (size, size, 3) in the sensor's frame and unit; 0 in cells without a point.
        valid: cells that hold a point (size, size), bool.
        organized: whether neighboring cells are neighbors in space, a scalar, bool; only then may maps be smoothed over
            the grid.
        has_rgb: whether ``image`` is a photograph, a scalar, bool.
        views: rendered views (v, 3, size, size), RGB in [0, 1].
        view_masks: pixels of the views that show a defect (v, size, size), bool.
        pixels: row and column in each view of each cell's point (v, size * size, 2), int16; cells are taken row by row.
        visible: whether the view shows the cell's point (v, size * size), bool.
        category: name of the kind of object.
        point_scores: anomaly score of each cell (size, size), in [0, 1] and never normalized. Metrics read these
            scores, as normalization clips scores and makes ties. Cells without a point hold the result of smoothing.
        object_score: anomaly score of the object, a scalar, in [0, 1] and never normalized.
        photograph: picture of ``image`` as the model's input (3, h, w) in [0, 1].
        view_sheet: picture of all views with the scores of their points (3, h, w).
        scored_cloud: picture of the cloud, colored by its scores (3, h, w).
    """

    numpy_class: ClassVar[type[NumpyCloudItem]] = NumpyCloudItem

    points: Tensor | None = None
    valid: Tensor | None = None
    organized: Tensor | None = None
    has_rgb: Tensor | None = None
    views: Tensor | None = None
    view_masks: Tensor | None = None
    pixels: Tensor | None = None
    visible: Tensor | None = None
    category: str | None = None
    point_scores: Tensor | None = None
    object_score: Tensor | None = None
    photograph: Tensor | None = None
    view_sheet: Tensor | None = None
    scored_cloud: Tensor | None = None


@dataclass
class CloudBatch(ImageBatch):
    """A batch of ``CloudItem``; each field has a leading dimension B, or is None.

    Args:
        points: positions (B, size, size, 3).
        valid: cells that hold a point (B, size, size).
        organized: whether neighboring cells are neighbors in space (B,).
        has_rgb: whether ``image`` is a photograph (B,).
        views: rendered views (B, v, 3, size, size).
        view_masks: pixels of the views that show a defect (B, v, size, size).
        pixels: row and column in each view of each cell's point (B, v, size * size, 2).
        visible: whether the view shows the cell's point (B, v, size * size).
        category: names of the kinds of objects, a list of B.
        point_scores: anomaly scores of the cells (B, size, size).
        object_score: anomaly scores of the objects (B,).
        photograph: pictures of ``image`` (B, 3, h, w).
        view_sheet: pictures of all views with scores (B, 3, h, w).
        scored_cloud: pictures of the scored clouds (B, 3, h, w).
    """

    item_class: ClassVar[type[CloudItem]] = CloudItem
    numpy_class: ClassVar[type[NumpyCloudBatch]] = NumpyCloudBatch

    points: Tensor | None = None
    valid: Tensor | None = None
    organized: Tensor | None = None
    has_rgb: Tensor | None = None
    views: Tensor | None = None
    view_masks: Tensor | None = None
    pixels: Tensor | None = None
    visible: Tensor | None = None
    category: list[str] | None = None
    point_scores: Tensor | None = None
    object_score: Tensor | None = None
    photograph: Tensor | None = None
    view_sheet: Tensor | None = None
    scored_cloud: Tensor | None = None

    @classmethod
    def collate(cls, items: Sequence[CloudItem]) -> "CloudBatch":
        """Stack items; a field that is None in any item is None in the batch.

        Args:
            items: items of one size and number of views.

        Raises:
            ValueError: if sizes or numbers of views differ.
        """
        shapes = {tuple(item.views.shape) for item in items if item.views is not None}
        if len(shapes) > 1:
            msg = f"Clouds of one batch should have views of one shape, got {sorted(shapes)}: use a batch size of 1."
            raise ValueError(msg)
        return cls(**stack_fields(items))
