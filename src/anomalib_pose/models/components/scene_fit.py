# SPDX-License-Identifier: Apache-2.0
"""Fit of a scene detector: scene, view bank, stored training views, and calibration on held-out views."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anomalib_pose.compare.reference import stack_references
from anomalib_pose.geometry import Camera
from anomalib_pose.models.components.fit_resume import FitCheckpoint, FitStages
from anomalib_pose.models.components.white_background import over_white
from anomalib_pose.pose import Query
from anomalib_pose.pose.held_out import localize_held_out_views
from anomalib_pose.progress import track
from anomalib_pose.scene import sort_by_contribution
from anomalib_pose.scene.view_coverage import has_sparse_views, warn_about_sparse_views

if TYPE_CHECKING:
    from anomalib_pose.models.components.scene_detector import SceneDetector

logger = logging.getLogger(__name__)

FitScene = Callable[[nn.Module, Tensor, Camera, Tensor | None, tuple[int, ...]], float]
"""Fits a scene to images, cameras and masks without the held-out views, and returns the PSNR of the held-out views."""


def fit_detector(
    detector: "SceneDetector",
    images: Tensor,
    cameras: Camera,
    foreground: Tensor | None,
    fit_scene: FitScene,
    checkpoint: FitCheckpoint | None = None,
) -> None:
    """Fit a detector in place; see ``SceneDetector.fit`` for the arguments."""
    stages = FitStages(detector, checkpoint)
    cameras = detector.world.fit(cameras)
    images, foreground, white_background = over_white(images, foreground)
    detector.white_background = torch.tensor(white_background, device=images.device)
    sparse = has_sparse_views(cameras)
    if sparse:
        warn_about_sparse_views(
            cameras,
            masked=foreground is not None,
            attenuates_unsupported=detector.nearby is not None,
            has_patch_memory=detector.comparison.memory is not None,
        )
    held_out = _held_out_views(len(images), detector.holdout_every)

    def fit() -> None:
        psnr = stages.fit_scene(lambda: fit_scene(detector.scene, images, cameras, foreground, held_out))
        sort_by_contribution(detector.rendered, cameras)
        detector.psnr = torch.tensor(psnr, device=images.device)
        detector.intrinsics = cameras.median_intrinsics
        detector.image_size = torch.tensor([cameras.height, cameras.width], device=images.device)

    stages.run("Fit the scene", fit)
    stages.run("Render the view bank", lambda: detector.bank.build(detector.rendered, cameras))
    nearby = detector.nearby
    if nearby is not None:
        fitted = [index for index in range(len(images)) if index not in held_out]
        keep_photographs = detector.check_support or sparse
        stages.run(
            "Store residuals of training views",
            lambda: nearby.store_residuals(
                detector.rendered, images[fitted], cameras[fitted], keep_photographs=keep_photographs
            ),
        )
    _calibrate(detector, images, cameras, foreground, held_out, stages)


def _held_out_views(count: int, every: int) -> tuple[int, ...]:
    """Return the indices of the held-out views: every n-th of more than n views, none of fewer."""
    return tuple(range(every // 2, count, every)) if count > every else ()


def _calibrate(
    detector: "SceneDetector",
    images: Tensor,
    cameras: Camera,
    foreground: Tensor | None,
    held_out: tuple[int, ...],
    stages: FitStages,
) -> None:
    """Calibrate pose confidence and comparison: the residuals of held-out views are those of normal queries.

    The detector stores the held-out views: an exported detector is calibrated on them from the checkpoint alone.
    """
    selected_views = list(held_out) or list(range(len(images)))
    reference_cameras = cameras[selected_views]
    detector.calibration_views = (images[list(held_out)] * 255).round().to(torch.uint8)
    if held_out:
        masks = [None] * len(held_out) if foreground is None else foreground[selected_views]
        parts = zip(images[selected_views], cameras.K[selected_views], masks, strict=True)
        queries = [Query(*part) for part in parts]

        def search() -> dict[str, Tensor]:
            estimates = localize_held_out_views(
                detector.estimator, detector.rendered, detector.bank, queries, cameras[selected_views]
            )
            return {
                "camera_to_world": torch.stack([camera.camera_to_world for camera in estimates]),
                "K": torch.stack([camera.K for camera in estimates]),
            }

        searched = stages.run("Search held-out cameras", search)
        reference_cameras = Camera(searched["camera_to_world"], searched["K"], cameras.width, cameras.height).to(
            images.device
        )
    else:
        logger.warning(
            "Too few views (%d) to hold any out, so the comparison is not calibrated. Give more views, or set a "
            "smaller holdout_every.", len(images),
        )  # fmt: skip
    references = stack_references(
        [
            detector.render_reference(reference_cameras[index])
            for index in track(range(len(selected_views)), "Render references of held-out views")
        ]
    )
    detector.comparison.calibrate(
        images,
        references,
        held_out,
        lambda index: detector.render_reference(cameras[index]),
        detector.rendered,
        stages.run,
    )
