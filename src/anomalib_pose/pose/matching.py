# SPDX-License-Identifier: Apache-2.0
"""A start for the alignment where the bank's views lead nowhere: features matched with rendered views, then PnP."""

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
_LEAST_MATCHES = 6
_SOLUTIONS = 2
_CONFIDENCE, _MAX_ITERATIONS = 0.9999, 10_000


@runtime_checkable
class Matcher(Protocol):
    """Finds points of an image again in other images."""

    def load(self) -> None:
        """Read what it needs from files, once.

        Raises:
            FileNotFoundError: if a file is not there.
            ValueError: if a file holds something else.
        """
        ...

    def __call__(
        self, image: Float[Tensor, "3 h w"], views: Float[Tensor, "v 3 h w"]
    ) -> list[tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]]:
        """For each view, matching pixel coordinates (x, y) in the image and in the view.

        Args:
            image: RGB in [0, 1].
            views: RGB in [0, 1], of the image's size. The first pixel's center is at (0.5, 0.5).
        """
        ...


class FeatureLocalizer:
    """Poses of a query from 2D-3D correspondences: points matched in rendered views, which know their depth.

    RANSAC looks once among all correspondences, and once among those that disagree with the first pose: where an object
    has look-alike sides, views of the wrong one can have the majority.

    Args:
        matcher: finds points of the query in the views.
        size: longer side in pixels of the query and the views that are matched; small images are enlarged.
        tolerance: largest reprojection error in pixels of a correspondence that counts as right.
        seed: of RANSAC.
    """

    def __init__(self, matcher: Matcher, size: int = 320, tolerance: float = 3.0, seed: int = 0) -> None:
        self.matcher = matcher
        self.size = size
        self.tolerance = tolerance
        self.seed = seed

    @torch.no_grad()
    def __call__(self, scene: Scene, query: Query, poses: Float[Tensor, "v 4 4"]) -> Float[Tensor, "s 4 4"]:
        """Camera-to-world poses of the query, the likeliest first; none if too few points match.

        Args:
            scene: the fitted object.
            query: the image.
            poses: camera-to-world poses of views that may show the same side of the object.
        """
        height, width = query.image.shape[-2:]
        scale = self.size / max(width, height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image, mask, intrinsics = resize_image_mask_K(query.image, query.foreground, query.K, *size)
        cameras = Camera(poses, intrinsics.expand(len(poses), 3, 3), *size)
        output = scene.render(cameras, query.background)
        matches = self.matcher(image, output.rgb.permute(0, 3, 1, 2).clamp(0, 1))
        points, pixels = _lifted(cameras, output, matches, mask)
        found = []
        for _ in range(_SOLUTIONS):
            pose, agrees = solve_pnp(points, pixels, intrinsics, self.tolerance, self.seed)
            if pose is None:
                break
            found.append(pose)
            points, pixels = points[~agrees], pixels[~agrees]
        return torch.stack(found) if found else poses[:0]


def _lifted(
    cameras: Camera, output: RenderOutput, matches: list[tuple[Tensor, Tensor]], mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Surface points (n, 3) and pixels (n, 2) of the query that show them, of all views one after the other."""
    points, pixels = [], []
    for index, (in_query, in_view) in enumerate(matches):
        surface, known = surface_points(cameras[index], output.depth[index], output.alpha[index], in_view)
        if mask is not None:
            known = known & (_sampled(mask[None], in_query)[:, 0] > _OPAQUE)
        points.append(surface[known])
        pixels.append(in_query[known])
    return torch.cat(points), torch.cat(pixels)


def surface_points(
    camera: Camera, depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 3"], Bool[Tensor, " n"]]:
    """World points that pixel coordinates show, between pixels interpolated, and whether all pixels around are opaque.

    Args:
        camera: one camera.
        depth: rendered there.
        alpha: rendered there.
        pixels: coordinates (x, y) in pixels.
    """
    opaque = ((alpha > _OPAQUE) & (depth > 0)).to(depth)
    sampled = _sampled(torch.cat([camera.unproject(depth).permute(2, 0, 1), opaque[None]]), pixels)
    return sampled[:, :3], sampled[:, 3] > 1 - 1e-4


def _sampled(channels: Tensor, pixels: Tensor) -> Tensor:
    """Values (n, c) of channels (c, h, w) at pixel coordinates (x, y), interpolated."""
    grid = 2 * pixels / pixels.new_tensor([channels.shape[-1], channels.shape[-2]]) - 1
    return F.grid_sample(channels[None], grid[None, None].to(channels), align_corners=False)[0, :, 0].T


def solve_pnp(
    points: Float[Tensor, "n 3"],
    pixels: Float[Tensor, "n 2"],
    K: Float[Tensor, "3 3"],  # noqa: N803
    tolerance: float,
    seed: int = 0,
) -> tuple[Float[Tensor, "4 4"] | None, Bool[Tensor, " n"]]:
    """Camera-to-world pose that projects most points near their pixels (RANSAC) or None, and which points those are.

    Args:
        points: world frame.
        pixels: coordinates (x, y) in pixels.
        K: intrinsics in the same pixels.
        tolerance: largest reprojection error of a correspondence that counts, pixels.
        seed: of the random samples.
    """
    agrees = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    if len(points) < _LEAST_MATCHES:
        return None, agrees
    parameters = cv2.UsacParams()
    parameters.threshold, parameters.confidence = tolerance, _CONFIDENCE
    parameters.maxIterations, parameters.randomGeneratorState = _MAX_ITERATIONS, seed
    world, image = points.double().cpu().numpy(), pixels.double().cpu().numpy()
    try:
        found, _, rotation, translation, inliers = cv2.solvePnPRansac(
            world, image, K.double().cpu().numpy(), np.zeros(4), params=parameters
        )
    except cv2.error:  # all points are one, for example
        return None, agrees
    if not found or inliers is None or len(inliers) < _LEAST_MATCHES:
        return None, agrees
    agrees[torch.from_numpy(inliers[:, 0]).to(agrees.device)] = True
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = torch.from_numpy(cv2.Rodrigues(rotation)[0])
    viewmat[:3, 3] = torch.from_numpy(translation[:, 0])
    return (rigid_inverse(viewmat).to(K) if bool(viewmat.isfinite().all()) else None), agrees
