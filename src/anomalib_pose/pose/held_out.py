# SPDX-License-Identifier: Apache-2.0
"""Views that were left out of a fit, looked for as if they were queries."""

import logging
from collections.abc import Sequence

import torch

from anomalib_pose.geometry import Camera, pose_error
from anomalib_pose.pose.agreement import measure_agreement
from anomalib_pose.pose.estimator import PoseEstimator
from anomalib_pose.pose.types import Query
from anomalib_pose.pose.view_bank import ViewBank
from anomalib_pose.scene import Scene

logger = logging.getLogger(__name__)

_FOUND_DEGREES = 3.0
_MOST = 0.9


def localize_held_out_views(
    estimator: PoseEstimator, scene: Scene, bank: ViewBank, queries: Sequence[Query], cameras: Camera
) -> list[Camera]:
    """Cameras as the search finds them, or as they are where it does not.

    The estimator learns what residual is typical, and what was found is logged.

    Args:
        estimator: searches.
        scene: fitted object.
        bank: of the scene.
        queries: images that the scene was not fitted to.
        cameras: where they were taken from.
    """
    seen_from, residuals, found = [], [], 0
    for index, query in enumerate(queries):
        estimate = estimator(scene, bank, query)
        camera, residual = estimate.camera, estimate.residual
        truth = cameras[index].camera_to_world
        if float(torch.rad2deg(pose_error(camera.camera_to_world.double(), truth.double())[0])) < _FOUND_DEGREES:
            found += 1
        else:
            camera, residual = cameras[index], measure_agreement(scene, query, truth)[0]
        seen_from.append(camera)
        residuals.append(residual)
    estimator.calibrate(torch.tensor(residuals))
    if found < _MOST * len(queries):
        logger.warning(
            "Of %d held-out cameras %d were found within %g degrees, and so it will be with queries: more views, or "
            "views closer together, would help.", len(queries), found, _FOUND_DEGREES,
        )  # fmt: skip
    else:
        logger.info("Found %d of %d held-out cameras within %g degrees.", found, len(queries), _FOUND_DEGREES)
    return seen_from
