# SPDX-License-Identifier: Apache-2.0
"""Metrics of the pose error against true cameras, and image metrics that need normal and anomalous queries."""

import logging
from typing import Any, ClassVar

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
    """Median of one number per query."""

    full_state_update = False
    errors: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("errors", default=[], dist_reduce_fx="cat")

    def compute(self) -> Tensor:
        """Return the median over the queries."""
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
        """Return the fraction of queries with an orientation error below one degree."""
        errors = torch.cat(list(self.errors)) if isinstance(self.errors, list) else self.errors
        return (errors < 1).float().mean()


class MedianAngleError(AnomalibMetric, _AngleMetric):
    """Median angle in degrees between estimated and true camera orientations."""

    default_fields = _FIELDS


class MedianCentreError(AnomalibMetric, _DistanceMetric):
    """Median distance in scene units between estimated and true optical centers."""

    default_fields = _FIELDS


class PosesWithinOneDegree(AnomalibMetric, _PosesWithinOneDegree):
    """Fraction of queries with an orientation error below one degree."""

    default_fields = _FIELDS


class _NeedsBothClasses(Metric):
    """Image metric that is NaN if all queries are normal, or all are anomalous.

    The stock metrics return 0 then, which reads like the worst possible detector.
    """

    name: str
    label_counts: Tensor
    _reported: ClassVar[set[tuple[int, int]]] = set()
    """Counts of normal and anomalous queries in the warnings since the last reset; one warning for all metrics."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_state("label_counts", default=torch.zeros(2), dist_reduce_fx="sum")

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Add the scores of a batch.

        Args:
            batch: queries with scores and labels.
            args: arguments of the stock metric.
            kwargs: arguments of the stock metric.
        """
        super().update(batch, *args, **kwargs)
        labels = getattr(batch, "gt_label", None)
        if labels is not None:
            anomalous = labels.bool().sum()
            self.label_counts += torch.stack([len(labels) - anomalous, anomalous]).to(self.label_counts)

    def compute(self) -> Tensor:
        """Return the stock metric, or NaN without queries of both classes."""
        normal, anomalous = self.label_counts.long().tolist()
        if normal and anomalous:
            return super().compute()
        if (normal, anomalous) not in self._reported:
            self._reported.add((normal, anomalous))
            logger.warning(
                "%s and other image metrics are NaN: they need normal and anomalous queries, got %d normal and %d "
                "anomalous.", self.name, normal, anomalous,
            )  # fmt: skip
        return torch.tensor(float("nan"), device=self.label_counts.device)

    def reset(self) -> None:
        """Discard the scores of all batches."""
        self._reported.clear()
        super().reset()


class AUROC(_NeedsBothClasses, metrics.AUROC):
    """Area under the ROC curve of image scores; NaN without queries of both classes."""


class AUPR(_NeedsBothClasses, metrics.AUPR):
    """Area under the precision-recall curve of image scores; NaN without queries of both classes."""


class F1Score(_NeedsBothClasses, metrics.F1Score):
    """F1 of image labels; NaN without queries of both classes."""
