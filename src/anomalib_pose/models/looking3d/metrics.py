# SPDX-License-Identifier: Apache-2.0
"""Accuracy of labels, and overlap of predicted and true boxes."""

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
    """Fraction of the queries with a correct label."""

    default_fields = ("pred_label", "gt_label")


class _BoxMetric(Metric):
    """Mean over anomalous queries with a true box.

    Args:
        detected_only: count only queries that are predicted to be anomalous, as the paper does. Otherwise all count, so
            that a detector gains nothing by missing hard anomalies.
        kwargs: arguments of ``Metric``.
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
        boxes: Float[Tensor, "b 4"],
        true_boxes: Float[Tensor, "b 4"],
        label: Shaped[Tensor, " b"],
        true_label: Shaped[Tensor, " b"],
    ) -> None:
        """Add queries.

        Args:
            boxes: predicted center, width and height.
            true_boxes: true boxes; zeros for no box.
            label: predicted label, 1 for anomalous.
            true_label: true label.
        """
        counted = true_label.bool() & (true_boxes[:, 2:] > 0).all(-1)
        if self.detected_only:
            counted &= label.bool()
        corners = [box_convert(part[counted].float(), "cxcywh", "xyxy") for part in (boxes, true_boxes)]
        self.total += self.values(box_iou(*corners).diagonal()).sum()
        self.count += counted.sum()

    def values(self, overlap: Tensor) -> Tensor:
        """Return the values to average.

        Args:
            overlap: intersections over unions (b,).
        """
        return overlap

    def compute(self) -> Tensor:
        """Return the mean; NaN if no query counts."""
        return self.total / self.count


class _HitMetric(_BoxMetric):
    """Fraction of anomalous queries whose boxes overlap by more than half."""

    def values(self, overlap: Tensor) -> Tensor:
        """Return 1 where the overlap is above 0.5, else 0."""
        return (overlap > 0.5).float()


class BoxIoU(AnomalibMetric, _BoxMetric):
    """Mean intersection over union of predicted and true boxes of anomalous queries."""

    default_fields = _FIELDS


class BoxAccuracy(AnomalibMetric, _HitMetric):
    """Fraction of anomalous queries whose predicted and true box have an intersection over union above 0.5."""

    default_fields = _FIELDS
