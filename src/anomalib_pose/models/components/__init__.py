# SPDX-License-Identifier: Apache-2.0
"""Parts that several models share: the Lightning side, the pipeline of the scene models and metrics."""

from anomalib_pose.models.components.metrics import MedianAngleError, MedianCentreError, PosesWithinOneDegree
from anomalib_pose.models.components.pose_mixin import PoseMixin, test_time_grad
from anomalib_pose.models.components.scene_detector import SceneDetector, ScenePrediction
from anomalib_pose.models.components.scene_model import SceneModelMixin

__all__ = [
    "MedianAngleError",
    "MedianCentreError",
    "PoseMixin",
    "PosesWithinOneDegree",
    "SceneDetector",
    "SceneModelMixin",
    "ScenePrediction",
    "test_time_grad",
]
