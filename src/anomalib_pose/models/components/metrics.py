# SPDX-License-Identifier: Apache-2.0
"""Pose errors as metrics, for test sets whose true cameras are known."""

from typing import Any

import torch
from anomalib.metrics import AnomalibMetric
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from anomalib_pose.geometry import pose_error

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
        """Add the distance between estimated and true optical centres.

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
    """Median distance in scene units between estimated and true optical centres."""

    default_fields = _FIELDS


class PosesWithinOneDegree(AnomalibMetric, _PosesWithinOneDegree):
    """Share of the queries whose orientation is right within one degree."""

    default_fields = _FIELDS
