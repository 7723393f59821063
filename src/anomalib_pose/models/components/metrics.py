# SPDX-License-Identifier: Apache-2.0
"""Metrics of the pose error against true cameras, and image metrics that need normal and anomalous queries."""

import logging
from collections.abc import Iterable, Sequence
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


class NeedsBothClasses(Metric):
    """Metric that is NaN if all queries, or all pixels, are normal or all are anomalous.

    The stock metrics return 0 then, which reads like the worst possible detector. The labels are the metric's second
    field.
    """

    name: str
    fields: Sequence[str]
    label_counts: Tensor
    _reported: ClassVar[set[tuple[str, int, int]]] = set()
    """Labels and counts in the warnings since the last reset; one warning for all metrics of images or of pixels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_state("label_counts", default=torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Add the scores of a batch.

        Args:
            batch: queries with scores and labels.
            args: arguments of the stock metric.
            kwargs: arguments of the stock metric.
        """
        super().update(batch, *args, **kwargs)
        labels = getattr(batch, self.fields[1], None)
        if labels is not None:
            anomalous = labels.bool().sum()
            self.label_counts += torch.stack([labels.numel() - anomalous, anomalous]).to(self.label_counts)

    def compute(self) -> Tensor | None:
        """Return the stock metric, NaN without both classes, or None without labels."""
        normal, anomalous = self.label_counts.tolist()
        if (normal and anomalous) or not (normal or anomalous):
            value: Tensor | None = super().compute()
            return value
        key = (self.fields[1], normal, anomalous)
        if key not in self._reported:
            self._reported.add(key)
            kind = "queries" if self.fields[1] == "gt_label" else "pixels"
            logger.warning(
                "%s and similar metrics are left out: they need normal and anomalous %s, got %d normal and %d "
                "anomalous.", self.name, kind, normal, anomalous,
            )  # fmt: skip
        return torch.tensor(float("nan"), device=self.label_counts.device)

    def reset(self) -> None:
        """Discard the scores of all batches."""
        self._reported.clear()
        super().reset()


class AUROC(NeedsBothClasses, metrics.AUROC):
    """Area under the ROC curve of image or pixel scores; NaN without both classes."""


class AUPR(NeedsBothClasses, metrics.AUPR):
    """Area under the precision-recall curve of image scores; NaN without both classes."""


class AUPRO(NeedsBothClasses, metrics.AUPRO):
    """Area under the per-region overlap curve of pixel scores; NaN without both classes."""


class F1Score(NeedsBothClasses, metrics.F1Score):
    """F1 of image or pixel labels; NaN without both classes."""


class DataEvaluator(metrics.Evaluator):
    """Evaluator that leaves out metrics without data: of poses without true poses, of pixels without masks.

    A metric without data is None or NaN. Neither says anything about a model, and a table of results should not list
    it.
    """

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the validation metrics that have data."""
        self._log(self.val_metrics, trainer, pl_module)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the test metrics that have data."""
        self._log(self.test_metrics, trainer, pl_module)

    def _log(self, logged: Iterable[Any], trainer: Any, pl_module: Any) -> None:
        del pl_module
        for metric in logged:
            value = metric.compute() if metric.update_called else None
            if value is None or bool(torch.isnan(value).any()):
                metric.reset()
                continue
            self.log(metric.name, metric)
            if trainer.barebones:  # nothing is logged then, and anomalib reads these two
                trainer.callback_metrics[metric.name] = trainer.logged_metrics[metric.name] = value
