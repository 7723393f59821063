# SPDX-License-Identifier: Apache-2.0
"""Initial poses from feature matches with rendered views, by PnP with RANSAC."""

from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera, resize_image_mask_K, rigid_inverse
from anomalib_pose.pose.types import Query
from anomalib_pose.render import RenderOutput
from anomalib_pose.scene import Scene

_OPAQUE = 0.5
_MIN_MATCHES = 6
_MAX_SOLUTIONS = 2
_CONFIDENCE, _MAX_ITERATIONS = 0.9999, 10_000


@runtime_checkable
class Matcher(Protocol):
    """Matches points between an image and several views."""

    def load(self) -> None:
        """Read the matcher's weights from its files, once.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if a file does not hold the matcher's weights.
        """
        ...

    def __call__(
        self, image: Float[Tensor, "3 h w"], views: Float[Tensor, "v 3 h w"]
    ) -> list[tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]]:
        """Return, for each view, the matching pixel coordinates (x, y) in the image and in the view.

        Args:
            image: RGB in [0, 1].
            views: RGB in [0, 1], of the image's size. The first pixel's center is at (0.5, 0.5).
        """
        ...


class FeatureLocalizer:
    """Computes poses of a query from 2D-3D correspondences with rendered views.

    A matcher matches points of the query and of the views. The rendered depth gives the 3D points. RANSAC runs twice:
    on all correspondences, and on those that disagree with the first pose. If an object has look-alike sides, views of
    the wrong side can hold the majority of the correspondences.

    Args:
        matcher: matches points between the query and the views.
        size: longer side in pixels of the query and the views for matching; smaller images are enlarged.
        tolerance: largest reprojection error of an inlier, in pixels.
        seed: seed of RANSAC.
    """

    def __init__(self, matcher: Matcher, size: int = 320, tolerance: float = 3.0, seed: int = 0) -> None:
        self.matcher = matcher
        self.size = size
        self.tolerance = tolerance
        self.seed = seed

    @torch.no_grad()
    def __call__(self, scene: Scene, query: Query, view_poses: Float[Tensor, "v 4 4"]) -> Float[Tensor, "s 4 4"]:
        """Return camera-to-world poses of the query, the most likely first; none if too few points match.

        Args:
            scene: the fitted object.
            query: the image.
            view_poses: camera-to-world poses of views that may show the same side of the object.
        """
        height, width = query.image.shape[-2:]
        scale = self.size / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image, mask, intrinsics = resize_image_mask_K(query.image, query.foreground, query.K, *size)
        cameras = Camera(view_poses, intrinsics.expand(len(view_poses), 3, 3), *size)
        rendering = scene.render(cameras, query.background)
        matches = self.matcher(image, rendering.rgb.permute(0, 3, 1, 2).clamp(0, 1))
        points, pixels = _correspondences(cameras, rendering, matches, mask)
        query_poses = []
        for _ in range(_MAX_SOLUTIONS):
            pose, inliers = solve_pnp(points, pixels, intrinsics, self.tolerance, self.seed)
            if pose is None:
                break
            query_poses.append(pose)
            points, pixels = points[~inliers], pixels[~inliers]
        return torch.stack(query_poses) if query_poses else view_poses[:0]


def _correspondences(
    cameras: Camera, rendering: RenderOutput, matches: list[tuple[Tensor, Tensor]], mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return surface points (n, 3) and their pixels in the query (n, 2), of all views one after the other.

    Args:
        cameras: cameras of the views.
        rendering: renderings of the views.
        matches: pixels in the query and pixels in the view, for each view.
        mask: foreground of the query (h, w), or None; matches outside it are dropped.
    """
    points, pixels = [], []
    for index, (query_pixels, view_pixels) in enumerate(matches):
        surface, valid = surface_points(cameras[index], rendering.depth[index], rendering.alpha[index], view_pixels)
        if mask is not None:
            valid = valid & (_sample(mask[None], query_pixels)[:, 0] > _OPAQUE)
        points.append(surface[valid])
        pixels.append(query_pixels[valid])
    return torch.cat(points), torch.cat(pixels)


def surface_points(
    camera: Camera, depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 3"], Bool[Tensor, " n"]]:
    """Interpolate the world points at pixel coordinates.

    Args:
        camera: one camera.
        depth: rendered by this camera.
        alpha: rendered by this camera.
        pixels: coordinates (x, y) in pixels.

    Returns:
        The points, and a mask of the points whose four surrounding pixels are all opaque.
    """
    opaque = ((alpha > _OPAQUE) & (depth > 0)).to(depth)
    sampled = _sample(torch.cat([camera.unproject(depth).permute(2, 0, 1), opaque[None]]), pixels)
    return sampled[:, :3], sampled[:, 3] > 1 - 1e-4


def _sample(channels: Tensor, pixels: Tensor) -> Tensor:
    """Interpolate channels (c, h, w) at pixel coordinates (x, y); return values (n, c)."""
    grid = 2 * pixels / pixels.new_tensor([channels.shape[-1], channels.shape[-2]]) - 1
    return F.grid_sample(channels[None], grid[None, None].to(channels), align_corners=False)[0, :, 0].T


def solve_pnp(
    points: Float[Tensor, "n 3"],
    pixels: Float[Tensor, "n 2"],
    K: Float[Tensor, "3 3"],  # noqa: N803
    tolerance: float,
    seed: int = 0,
) -> tuple[Float[Tensor, "4 4"] | None, Bool[Tensor, " n"]]:
    """Solve for the camera-to-world pose with the most inliers, by PnP with RANSAC.

    Args:
        points: world frame.
        pixels: coordinates (x, y) in pixels.
        K: intrinsics in the same pixels.
        tolerance: largest reprojection error of an inlier, pixels.
        seed: seed of RANSAC.

    Returns:
        The pose, or None if fewer than six points agree, and the mask of the inliers.
    """
    inliers = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    if len(points) < _MIN_MATCHES:
        return None, inliers
    parameters = cv2.UsacParams()
    parameters.threshold, parameters.confidence = tolerance, _CONFIDENCE
    parameters.maxIterations, parameters.randomGeneratorState = _MAX_ITERATIONS, seed
    world, image = points.double().cpu().numpy(), pixels.double().cpu().numpy()
    try:
        success, _, rotation, translation, indices = cv2.solvePnPRansac(
            world, image, K.double().cpu().numpy(), np.zeros(4), params=parameters
        )
    except cv2.error:  # for example if all points coincide
        return None, inliers
    if not success or indices is None or len(indices) < _MIN_MATCHES:
        return None, inliers
    inliers[torch.from_numpy(indices[:, 0]).to(inliers.device)] = True
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = torch.from_numpy(cv2.Rodrigues(rotation)[0])
    viewmat[:3, 3] = torch.from_numpy(translation[:, 0])
    return (rigid_inverse(viewmat).to(K) if bool(viewmat.isfinite().all()) else None), inliers
