# SPDX-License-Identifier: Apache-2.0
"""What goes into a pose search and what comes out."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.scene import Scene


@dataclass(frozen=True)
class PoseEstimate:
    """The camera of a query, and how sure it is. A pose that was not found is an estimate of low confidence.

    Args:
        camera: estimated camera.
        residual: how little the structure of query and rendering have in common, see ``structure_residual``.
        confidence: in [0, 1]; agreement of structure and silhouettes, see ``PoseEstimator``.
        converged: whether the refinement stopped by itself.
        n_renders: images rendered for this query.
    """

    camera: Camera
    residual: float
    confidence: float
    converged: bool
    n_renders: int


@dataclass(frozen=True)
class Query:
    """An image whose camera is looked for.

    Args:
        image: RGB (3, H, W) in [0, 1]; over white where ``foreground`` is known.
        K: intrinsics (3, 3) in pixels.
        foreground: mask of the object (H, W) in [0, 1], or None if the background is unknown.
    """

    image: Float[Tensor, "3 h w"]
    K: Float[Tensor, "3 3"]
    foreground: Float[Tensor, "h w"] | None = None

    @property
    def background(self) -> Float[Tensor, "3"]:
        """Color to render over: white where the foreground is known, else the median of the image's border."""
        if self.foreground is not None:
            return torch.ones(3, device=self.image.device)
        edges = (self.image[:, 0], self.image[:, -1], self.image[:, :, 0], self.image[:, :, -1])
        return torch.cat(edges, 1).median(1).values

    def camera_at(self, camera_to_world: Float[Tensor, "4 4"]) -> Camera:
        """The query's camera at a pose."""
        return Camera(camera_to_world, self.K, self.image.shape[-1], self.image.shape[-2])


@dataclass(frozen=True)
class RefinementResult:
    """Where a refinement of one start ended.

    Args:
        camera_to_world: refined pose (4, 4).
        cost: the refiner's cost there; comparable between starts of one query.
        converged: whether it stopped by itself.
        n_renders: images rendered.
        focal_scale: what the query's focal lengths were multiplied by to get there.
    """

    camera_to_world: Float[Tensor, "4 4"]
    cost: float
    converged: bool
    n_renders: int
    focal_scale: float = 1.0


@runtime_checkable
class Refiner(Protocol):
    """Improves start poses of a query."""

    def __call__(self, scene: Scene, query: Query, starts: Float[Tensor, "s 4 4"]) -> RefinementResult:
        """Refine the starts and return the best end.

        Args:
            scene: the object.
            query: the image.
            starts: camera-to-world poses, the likeliest first.
        """
        ...
