# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of pose estimation: the query, a refinement's result, and the pose estimate."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.scene import Scene


@dataclass(frozen=True)
class PoseEstimate:
    """The estimated camera of a query, with its confidence. A failed estimation has a low confidence.

    Args:
        camera: estimated camera.
        residual: structural difference between query and rendering, see ``structure_residual``.
        confidence: in [0, 1]; agreement of structure and silhouettes, see ``PoseEstimator``.
        converged: whether the refinement stopped before its last iteration.
        n_renders: number of images rendered for this query.
    """

    camera: Camera
    residual: float
    confidence: float
    converged: bool
    n_renders: int


@dataclass(frozen=True)
class Query:
    """An image whose camera pose is unknown.

    Args:
        image: RGB (3, H, W) in [0, 1]; over white if ``foreground`` is given.
        K: intrinsics (3, 3) in pixels.
        foreground: mask of the object (H, W) in [0, 1], or None if the background is unknown.
    """

    image: Float[Tensor, "3 h w"]
    K: Float[Tensor, "3 3"]
    foreground: Float[Tensor, "h w"] | None = None

    @property
    def background(self) -> Float[Tensor, "3"]:
        """Background color of renderings: white with a ``foreground``, else the median color of the image border."""
        if self.foreground is not None:
            return torch.ones(3, device=self.image.device)
        border = (self.image[:, 0], self.image[:, -1], self.image[:, :, 0], self.image[:, :, -1])
        return torch.cat(border, 1).median(1).values

    def camera_at(self, camera_to_world: Float[Tensor, "4 4"]) -> Camera:
        """Return the camera at a pose, with the query's intrinsics and image size."""
        return Camera(camera_to_world, self.K, self.image.shape[-1], self.image.shape[-2])


@dataclass(frozen=True)
class RefinementResult:
    """The best pose that a refiner reached.

    Args:
        camera_to_world: refined pose (4, 4).
        cost: the refiner's cost at this pose; comparable between the initial poses of one query.
        converged: whether the refinement stopped before its last iteration.
        n_renders: number of images rendered, for all initial poses together.
        focal_scale: factor between the refined focal lengths and the query's.
    """

    camera_to_world: Float[Tensor, "4 4"]
    cost: float
    converged: bool
    n_renders: int
    focal_scale: float = 1.0


@runtime_checkable
class Refiner(Protocol):
    """Refines initial poses of a query."""

    def __call__(self, scene: Scene, query: Query, initial_poses: Float[Tensor, "s 4 4"]) -> RefinementResult:
        """Refine the initial poses and return the best result.

        Args:
            scene: the fitted object.
            query: the image.
            initial_poses: camera-to-world poses, the most likely first.
        """
        ...
