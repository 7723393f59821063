# SPDX-License-Identifier: Apache-2.0
"""What several models share: the Lightning side, the pipeline of the scene models, metrics."""

from anomalib_pose.models.components.metrics import MedianAngleError, MedianCentreError, PosesWithinOneDegree
from anomalib_pose.models.components.pose_mixin import PoseMixin, test_time_grad
from anomalib_pose.models.components.scene_detector import SceneDetector, ScenePrediction

__all__ = [
    "MedianAngleError",
    "MedianCentreError",
    "PoseMixin",
    "PosesWithinOneDegree",
    "SceneDetector",
    "ScenePrediction",
    "test_time_grad",
]
