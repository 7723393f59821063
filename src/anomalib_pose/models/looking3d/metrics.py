# SPDX-License-Identifier: Apache-2.0
"""Accuracy of labels, and how well boxes fit."""

from typing import Any

import torch
from anomalib.metrics import AnomalibMetric
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy
from torchvision.ops import box_convert, box_iou

_FIELDS = ("pred_box", "box", "pred_label", "gt_label")


class Accuracy(AnomalibMetric, BinaryAccuracy):
    """Share of the queries whose label is right."""

    default_fields = ("pred_label", "gt_label")


class _BoxMetric(Metric):
    """Mean over anomalous queries whose box is known.

    Args:
        detected_only: count those alone that were found to be anomalous, as the paper does. Otherwise a query counts
            whatever its label, so that a detector gains nothing by leaving out what is hard.
        kwargs: of ``Metric``.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, detected_only: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.detected_only = detected_only
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        found: Float[Tensor, "b 4"],
        truth: Float[Tensor, "b 4"],
        label: Shaped[Tensor, " b"],
        true_label: Shaped[Tensor, " b"],
    ) -> None:
        """Add queries.

        Args:
            found: boxes: center, width and height.
            truth: boxes; zeros where there is none.
            label: what was found, 1 for anomalous.
            true_label: what is true.
        """
        counted = true_label.bool() & (truth[:, 2:] > 0).all(-1)
        if self.detected_only:
            counted &= label.bool()
        boxes = [box_convert(box[counted].float(), "cxcywh", "xyxy") for box in (found, truth)]
        self.total += self.values(box_iou(*boxes).diagonal()).sum()
        self.count += counted.sum()

    def values(self, overlap: Tensor) -> Tensor:
        """What is averaged.

        Args:
            overlap: intersections over unions (b,).
        """
        return overlap

    def compute(self) -> Tensor:
        """The mean; NaN if no query counts."""
        return self.total / self.count


class _HitMetric(_BoxMetric):
    """Mean over anomalous queries of whether the box was found."""

    def values(self, overlap: Tensor) -> Tensor:
        """1 where the overlap is more than a half."""
        return (overlap > 0.5).float()


class BoxIoU(AnomalibMetric, _BoxMetric):
    """Mean intersection over union of found and true boxes of anomalous queries."""

    default_fields = _FIELDS


class BoxAccuracy(AnomalibMetric, _HitMetric):
    """Share of the anomalous queries whose box overlaps the true one by more than half of their union."""

    default_fields = _FIELDS
