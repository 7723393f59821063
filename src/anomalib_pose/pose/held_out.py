# SPDX-License-Identifier: Apache-2.0
"""Pose estimation of held-out training views, which measures the estimator on images that the fit did not use."""

import logging
from collections.abc import Sequence

import torch

from anomalib_pose.geometry import Camera, pose_error
from anomalib_pose.pose.agreement import measure_agreement
from anomalib_pose.pose.estimator import PoseEstimator
from anomalib_pose.pose.types import Query
from anomalib_pose.pose.view_bank import ViewBank
from anomalib_pose.progress import track
from anomalib_pose.scene import Scene

logger = logging.getLogger(__name__)

_MAX_ERROR_DEGREES = 3.0
_EXPECTED_SUCCESS_RATE = 0.9


def localize_held_out_views(
    estimator: PoseEstimator, scene: Scene, bank: ViewBank, queries: Sequence[Query], cameras: Camera
) -> list[Camera]:
    """Estimate the cameras of held-out views, and calibrate the estimator with their residuals.

    A view counts as localized if its rotation error is below 3 degrees. The function logs the number of localized
    views. For the other views it returns the true camera.

    Args:
        estimator: the pose estimator; its typical residual is set.
        scene: the fitted object.
        bank: the scene's view bank.
        queries: images that the fit did not use.
        cameras: true cameras of these images.

    Returns:
        One camera per query: the estimate, or the true camera if the estimate is wrong.
    """
    view_cameras, residuals, n_localized = [], [], 0
    for index, query in enumerate(track(queries, "Search cameras")):
        estimate = estimator(scene, bank, query)
        camera, residual = estimate.camera, estimate.residual
        true_pose = cameras[index].camera_to_world
        angle, _ = pose_error(camera.camera_to_world.double(), true_pose.double())
        if float(torch.rad2deg(angle)) < _MAX_ERROR_DEGREES:
            n_localized += 1
        else:
            camera, residual = cameras[index], measure_agreement(scene, query, true_pose)[0]
        view_cameras.append(camera)
        residuals.append(residual)
    estimator.calibrate(torch.tensor(residuals))
    if n_localized < _EXPECTED_SUCCESS_RATE * len(queries):
        logger.warning(
            "The pose of %d of %d held-out views was estimated within %g degrees. Expect the same rate on queries. "
            "Add training views, or take them closer together.", n_localized, len(queries), _MAX_ERROR_DEGREES,
        )  # fmt: skip
    else:
        logger.info(
            "The pose of %d of %d held-out views was estimated within %g degrees.",
            n_localized, len(queries), _MAX_ERROR_DEGREES,
        )  # fmt: skip
    return view_cameras
