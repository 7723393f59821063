# SPDX-License-Identifier: Apache-2.0
"""Linearized photometric residual between an image and a rendered surface that moves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import projection_jacobian
from anomalib_pose.pose.pyramid import central_differences

OPAQUE = 0.3
"""Opacity above which a rendered pixel belongs to the surface."""

_MARGIN = 2  # pixels around the silhouette that take part; they get the depth of the nearest surface

RobustCost = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps residuals to their robust costs and their weights."""


@dataclass(frozen=True)
class RenderedSurface:
    """The N pixels of a rendering that show the object or lie close to its silhouette.

    Args:
        points: surface points in the camera's frame (3, N).
        pixel_centers: columns and rows of the pixel centers (2, N).
        colors: RGB (3, N).
        slopes: derivatives of the colors along x and y, per pixel (2, 3, N).
    """

    points: Float[Tensor, "3 n"]
    pixel_centers: Float[Tensor, "2 n"]
    colors: Float[Tensor, "3 n"]
    slopes: Float[Tensor, "2 3 n"]


class NormalEquations(NamedTuple):
    """Gauss-Newton system of the sum of robust costs. It has k unknowns and is in double precision.

    The unknowns are the tangent (v, omega) that moves the surface, so k = 6. With the focal length, k = 7: the last
    unknown is the logarithm of a focal factor.

    Args:
        cost: mean robust cost.
        hessian: Gauss-Newton approximation (k, k) of the Hessian.
        gradient: gradient (k,).
        shift: mean distance in pixels between the moved surface and its place in the rendering.
    """

    cost: float
    hessian: Tensor
    gradient: Tensor
    shift: float


def rendered_surface(
    rgb: Float[Tensor, "3 h w"], depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"], intrinsics: Tensor
) -> RenderedSurface | None:
    """Return the surface in a rendering, with a margin around it; None if the rendering is empty.

    Args:
        rgb: the rendering.
        depth: along the optical axis.
        alpha: opacity.
        intrinsics: K (3, 3).
    """
    z, pixels = _extended_depth(depth, alpha)
    index = pixels.flatten().nonzero()[:, 0]
    if not len(index):
        return None
    pixel_centers = torch.stack([index % z.shape[1], index // z.shape[1]]) + 0.5
    z = z.flatten()[index]
    rays = (pixel_centers - intrinsics[:2, 2:]) / intrinsics.diagonal()[:2, None]
    images = torch.cat([rgb, *central_differences(rgb)]).flatten(1).index_select(1, index).unflatten(0, (3, 3))
    return RenderedSurface(torch.cat([rays, torch.ones_like(rays[:1])]) * z, pixel_centers, images[0], images[1:])


def linearize(
    surface: RenderedSurface,
    image: Float[Tensor, "9 h w"],
    intrinsics: Tensor,
    motion: Float[Tensor, "4 4"],
    robust_cost: RobustCost,
    *,
    focal: bool = False,
) -> NormalEquations:
    """Linearize the color residual of a moved surface with respect to a further motion of the surface.

    The residual is ``rendering(u) - image(pi(exp(xi) motion p))``. Its slope is the mean of the rendering's slope and
    the image's slope at the projected point. This mean is second-order accurate (Malis 2004).

    Args:
        surface: surface of a rendering, N pixels.
        image: RGB, its derivatives along x, and its derivatives along y (9, H, W).
        intrinsics: K (3, 3) of rendering and image.
        motion: rigid motion (4, 4) of the points in the camera's frame.
        robust_cost: costs and weights of residuals (3, N).
        focal: linearize with respect to the logarithm of a focal factor, too.
    """
    motion = motion.to(surface.points)
    moved = motion[:3, :3] @ surface.points + motion[:3, 3:]
    rays = moved[:2] / moved[2:].clamp(min=1e-6)
    offset = intrinsics.diagonal()[:2, None] * rays
    uv = offset + intrinsics[:2, 2:]
    size = uv.new_tensor(image.shape[:0:-1])[:, None]
    grid = (2 * uv / size - 1).T[None, None]
    sampled = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)
    sampled = sampled[0, :, 0].unflatten(0, (3, 3))
    residual = surface.colors - sampled[0]
    costs, weight = robust_cost(residual)
    by_u, by_v = projection_jacobian(rays[0], rays[1], 1 / moved[2].clamp(min=1e-6), -1)
    by_u, by_v = by_u * intrinsics[0, 0], by_v * intrinsics[1, 1]
    if focal:
        # The focal factor scales a pixel's offset from the principal point.
        by_u, by_v = torch.cat([by_u, offset[0][:, None]], 1), torch.cat([by_v, offset[1][:, None]], 1)
    slopes = 0.5 * (surface.slopes + sampled[1:])
    # All channels of a pixel share its motion, so they are summed before the product with the Jacobian.
    weighted = weight * slopes
    xx, xy, yy = ((weighted[i] * slopes[j]).sum(0)[:, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    hessian = (xx * by_u + xy * by_v).T @ by_u + (xy * by_u + yy * by_v).T @ by_v
    pull_x, pull_y = (weighted * residual).sum(1)
    gradient = -(by_u.T @ pull_x + by_v.T @ pull_y)
    shift = float((uv - surface.pixel_centers).square().sum(0).sqrt().mean())
    return NormalEquations(float(costs.mean()), hessian.double(), gradient.double(), shift)


def _extended_depth(depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"]) -> tuple[Tensor, Bool[Tensor, "h w"]]:
    """Extend the object's depth by ``_MARGIN`` pixels; return the depth and the mask of its pixels."""
    opaque = (alpha > OPAQUE) & (depth > 0)
    object_depth = torch.where(opaque, depth, 0)
    size = 2 * _MARGIN + 1
    column_max = F.max_pool2d(object_depth[None, None], (size, 1), 1, (_MARGIN, 0))
    extended = F.max_pool2d(column_max, (1, size), 1, (0, _MARGIN))[0, 0]
    return torch.where(opaque, depth, extended), extended > 0
