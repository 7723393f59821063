# SPDX-License-Identifier: Apache-2.0
"""Pose errors as metrics, for test sets whose true cameras are known; image metrics that know what they need."""

import logging
from typing import Any

import torch
from anomalib import metrics
from anomalib.data import Batch
from anomalib.metrics import AnomalibMetric
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from anomalib_pose.geometry import pose_error

logger = logging.getLogger(__name__)

_FIELDS = ("estimated_camera_to_world", "camera_to_world")


class _MedianMetric(Metric):
    """Keeps one number a query and reports the median."""

    full_state_update = False
    errors: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("errors", default=[], dist_reduce_fx="cat")

    def compute(self) -> Tensor:
        """Median over the queries seen."""
        errors = torch.cat(list(self.errors)) if isinstance(self.errors, list) else self.errors
        return errors.quantile(0.5)


class _AngleMetric(_MedianMetric):
    def update(self, estimate: Float[Tensor, "b 4 4"], truth: Float[Tensor, "b 4 4"]) -> None:
        """Add the angle between estimated and true orientations.

        Args:
            estimate: estimated camera-to-world poses.
            truth: true camera-to-world poses.
        """
        self.errors.append(torch.rad2deg(pose_error(estimate.double(), truth.double())[0]).float())


class _DistanceMetric(_MedianMetric):
    def update(self, estimate: Float[Tensor, "b 4 4"], truth: Float[Tensor, "b 4 4"]) -> None:
        """Add the distance between estimated and true optical centers.

        Args:
            estimate: estimated camera-to-world poses.
            truth: true camera-to-world poses.
        """
        self.errors.append(pose_error(estimate.double(), truth.double())[1].float())


class _PosesWithinOneDegree(_AngleMetric):
    def compute(self) -> Tensor:
        """Share of the queries whose orientation is right within one degree."""
        errors = torch.cat(list(self.errors)) if isinstance(self.errors, list) else self.errors
        return (errors < 1).float().mean()


class MedianAngleError(AnomalibMetric, _AngleMetric):
    """Median angle in degrees between estimated and true camera orientations."""

    default_fields = _FIELDS


class MedianCentreError(AnomalibMetric, _DistanceMetric):
    """Median distance in scene units between estimated and true optical centers."""

    default_fields = _FIELDS


class PosesWithinOneDegree(AnomalibMetric, _PosesWithinOneDegree):
    """Share of the queries whose orientation is right within one degree."""

    default_fields = _FIELDS


class _NeedsBothClasses(Metric):
    """An image metric that is not a number where all queries are good, or all are defective.

    The stock metrics say 0 there, which reads like the worst detector that there is.
    """

    name: str
    labels_seen: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_state("labels_seen", default=torch.zeros(2), dist_reduce_fx="sum")

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Add the scores of a batch.

        Args:
            batch: queries with scores and labels.
            args: for the stock metric.
            kwargs: for the stock metric.
        """
        super().update(batch, *args, **kwargs)
        labels = getattr(batch, "gt_label", None)
        if labels is not None:
            anomalous = labels.bool().sum()
            self.labels_seen += torch.stack([len(labels) - anomalous, anomalous]).to(self.labels_seen)

    def compute(self) -> Tensor:
        """The stock metric, or NaN without queries of both classes."""
        good, anomalous = self.labels_seen.long().tolist()
        if not good or not anomalous:
            logger.warning(
                "%s is not a number: it needs good and anomalous queries, the test set has %d and %d.",
                self.name, good, anomalous,
            )  # fmt: skip
            return torch.tensor(float("nan"), device=self.labels_seen.device)
        return super().compute()


class AUROC(_NeedsBothClasses, metrics.AUROC):
    """Area under the ROC curve of image scores; NaN without queries of both classes."""


class AUPR(_NeedsBothClasses, metrics.AUPR):
    """Area under the precision-recall curve of image scores; NaN without queries of both classes."""


class F1Score(_NeedsBothClasses, metrics.F1Score):
    """F1 of image labels; NaN without queries of both classes."""
