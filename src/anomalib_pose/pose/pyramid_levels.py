# SPDX-License-Identifier: Apache-2.0
"""Levels of the direct alignment's image pyramid: the query at one size, and the scene rendered at this size."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anomalib_pose.geometry import Camera, scale_focal_lengths
from anomalib_pose.pose.pyramid import central_differences, gaussian_blur_replicated, shrink
from anomalib_pose.pose.types import Query
from anomalib_pose.scene import Scene, reduced_scene

_SETTLED_SHIFT = {8: 0.2, 4: 0.2, 2: 0.1, 1: 0.02}  # pixels, for each divisor; smaller shifts end the level
# Smallest shorter side in pixels of a level, for each divisor. Smaller images have too few pixels for six degrees of
# freedom. Divisor 8 needs more: a view of the bank is close enough without this level, and on images of 25 pixels a
# missing part of the object moved the camera out of the next level's basin of convergence.
_MIN_LEVEL_SIZE = {8: 48, 4: 24, 2: 24, 1: 0}
_REDESCENDING_FROM = 4  # divisor; pixels of coarser levels mix missing and present parts of the object
_REDUCED_SCENE_FROM = 4  # divisor; there the Gaussians that the reduced scene omits are smaller than a pixel
_FOCAL_FROM = 2  # divisor; on coarser levels the focal length would absorb errors of the pose
_BLUR_OF_DIVISOR = {8: 2.0, 4: 1.0, 2: 0.7, 1: 0.0}


@dataclass(frozen=True)
class CameraEstimate:
    """A pose (4, 4), and the logarithm of the factor on the query's focal lengths."""

    camera_to_world: Tensor
    log_focal: float = 0.0


@dataclass
class PyramidLevel:
    """One level of the image pyramid: the query at one size, and the scene that is rendered at this size.

    Args:
        camera: camera of the level's size; its pose is replaced by the estimate's.
        image: blurred query (3, h, w).
        blur: standard deviation of the blur in pixels.
        background: color (3,).
        scene: the object.
        maps: image and its derivatives along x and y (9, h, w).
        redescends: use redescending weights.
        refines_focal: refine the focal length.
        settled_shift: mean shift in pixels below which the level ends.
        n_renders: number of renderings so far.
    """

    camera: Camera
    image: Tensor
    blur: float
    background: Tensor
    scene: Scene
    maps: Tensor
    redescends: bool
    refines_focal: bool
    settled_shift: float
    n_renders: int = 0

    def render(self, estimate: CameraEstimate) -> tuple[Tensor, Tensor, Tensor]:
        """Render blurred color over the background (3, h, w), depth (h, w) and alpha (h, w)."""
        self.n_renders += 1
        camera = replace(self.camera.with_pose(estimate.camera_to_world), K=self.intrinsics(estimate))
        output = self.scene.render(camera, self.background)
        return gaussian_blur_replicated(output.rgb.permute(2, 0, 1), self.blur), output.depth, output.alpha

    def intrinsics(self, estimate: CameraEstimate) -> Tensor:
        """Return K (3, 3) at this level's size, with the estimate's focal factor."""
        return scale_focal_lengths(self.camera.K, math.exp(estimate.log_focal))


def build_levels(
    scene: Scene, query: Query, max_size: int, coarsest: int, *, redescending: bool, refine_focal: bool
) -> list[PyramidLevel]:
    """Build the image pyramid of a query, the coarsest level first.

    Args:
        scene: the fitted object.
        query: the image.
        max_size: longer side in pixels of the finest level.
        coarsest: divisor of the size on the coarsest level, 1, 2, 4 or 8.
        redescending: use redescending weights on fine levels.
        refine_focal: refine the focal length on fine levels.
    """
    height, width = query.image.shape[-2:]
    finest_divisor = max(1.0, max(width, height) / max_size)
    full_size_camera = query.camera_at(torch.eye(4, device=query.image.device))
    levels = []
    for divisor, blur in _BLUR_OF_DIVISOR.items():
        if divisor > coarsest or min(width, height) / finest_divisor / divisor < _MIN_LEVEL_SIZE[divisor]:
            continue
        size = (
            max(1, round(width / finest_divisor / divisor)),
            max(1, round(height / finest_divisor / divisor)),
        )
        image = gaussian_blur_replicated(shrink(query.image, *size), blur)
        level = PyramidLevel(
            camera=full_size_camera.resized(*size),
            image=image,
            blur=blur,
            background=query.background,
            scene=reduced_scene(scene, small=divisor >= _REDUCED_SCENE_FROM),
            maps=torch.cat([image, *central_differences(image)]),
            redescends=redescending and divisor <= _REDESCENDING_FROM,
            refines_focal=refine_focal and divisor <= _FOCAL_FROM,
            settled_shift=_SETTLED_SHIFT[divisor],
        )
        levels.append(level)
    return levels
