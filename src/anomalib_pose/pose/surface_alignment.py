# SPDX-License-Identifier: Apache-2.0
"""An image beside the surface that a rendering shows, linearized in the motion between them."""

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
_REACH = 2  # pixels beyond the silhouette that still pull; they take the depth of the nearest surface

Robust = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Costs of residuals, and the weights that they get."""


@dataclass(frozen=True)
class RenderedSurface:
    """What a rendering shows of an object, at N pixels.

    Args:
        points: of the surface in the camera's frame (3, N).
        places: columns and rows of the pixels (2, N).
        colors: (3, N).
        slopes: of the colors along x and y a pixel (2, 3, N).
    """

    points: Float[Tensor, "3 n"]
    places: Float[Tensor, "2 n"]
    colors: Float[Tensor, "3 n"]
    slopes: Float[Tensor, "2 3 n"]


class NormalEquations(NamedTuple):
    """Mean cost, normal matrix (k, k) and gradient (k,) of the sum of the costs, in double precision.

    Args:
        cost: in units of the robust costs.
        hessian: of k = 6 numbers, a tangent (v, omega) that moves the surface, or of 7 with the logarithm of a factor
            of the focal length.
        gradient: of the same.
        shift: how far the surface is from where the rendering shows it, mean in pixels.
    """

    cost: float
    hessian: Tensor
    gradient: Tensor
    shift: float


def rendered_surface(
    rgb: Float[Tensor, "3 h w"], depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"], intrinsics: Tensor
) -> RenderedSurface | None:
    """The surface that a rendering shows, and some pixels around it; None where it shows nothing.

    Args:
        rgb: the rendering.
        depth: along the optical axis.
        alpha: opacity.
        intrinsics: K (3, 3).
    """
    z, pixels = _surface(depth, alpha)
    index = pixels.flatten().nonzero()[:, 0]
    if not len(index):
        return None
    places = torch.stack([index % z.shape[1], index // z.shape[1]]) + 0.5
    z = z.flatten()[index]
    slopes = (places - intrinsics[:2, 2:]) / intrinsics.diagonal()[:2, None]
    images = torch.cat([rgb, *central_differences(rgb)]).flatten(1).index_select(1, index).unflatten(0, (3, 3))
    return RenderedSurface(torch.cat([slopes, torch.ones_like(slopes[:1])]) * z, places, images[0], images[1:])


def linearize(
    surface: RenderedSurface,
    image: Float[Tensor, "9 h w"],
    intrinsics: Tensor,
    motion: Float[Tensor, "4 4"],
    robust: Robust,
    *,
    focal: bool = False,
) -> NormalEquations:
    """How an image differs from a surface that has moved, to first order in a further motion.

    The residual is ``rendering(u) - image(pi(exp(xi) motion p))``; its slope is the mean of the rendering's and of the
    image's at the place (second order accurate, Malis 2004).

    Args:
        surface: what a rendering shows.
        image: RGB, its derivatives along x, and those along y.
        intrinsics: K (3, 3) of both.
        motion: of the points in the camera's frame.
        robust: costs and weights of residuals (3, N).
        focal: linearize in the logarithm of a factor of the focal length, too.
    """
    motion = motion.to(surface.points)
    moved = motion[:3, :3] @ surface.points + motion[:3, 3:]
    slopes = moved[:2] / moved[2:].clamp(min=1e-6)
    offset = intrinsics.diagonal()[:2, None] * slopes
    uv = offset + intrinsics[:2, 2:]
    size = uv.new_tensor(image.shape[:0:-1])[:, None]
    grid = (2 * uv / size - 1).T[None, None]
    seen = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0, :, 0].unflatten(0, (3, 3))
    residual = surface.colors - seen[0]
    costs, weight = robust(residual)
    by_u, by_v = projection_jacobian(slopes[0], slopes[1], 1 / moved[2].clamp(min=1e-6), -1)
    by_u, by_v = by_u * intrinsics[0, 0], by_v * intrinsics[1, 1]
    if focal:
        by_u, by_v = (torch.cat([by, of[:, None]], 1) for by, of in zip((by_u, by_v), offset, strict=True))
    along = 0.5 * (surface.slopes + seen[1:])
    # channels share the pixel's motion, so they are summed before it is multiplied by
    weighted = weight * along
    xx, xy, yy = ((weighted[i] * along[j]).sum(0)[:, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    hessian = (xx * by_u + xy * by_v).T @ by_u + (xy * by_u + yy * by_v).T @ by_v
    pull_x, pull_y = (weighted * residual).sum(1)
    gradient = -(by_u.T @ pull_x + by_v.T @ pull_y)
    shift = float((uv - surface.places).square().sum(0).sqrt().mean())
    return NormalEquations(float(costs.mean()), hessian.double(), gradient.double(), shift)


def _surface(depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"]) -> tuple[Tensor, Bool[Tensor, "h w"]]:
    """Depth on the object and ``_REACH`` pixels around it, and which pixels those are."""
    opaque = (alpha > OPAQUE) & (depth > 0)
    known = torch.where(opaque, depth, 0)
    size = 2 * _REACH + 1
    down = F.max_pool2d(known[None, None], (size, 1), 1, (_REACH, 0))
    grown = F.max_pool2d(down, (1, size), 1, (0, _REACH))[0, 0]
    return torch.where(opaque, depth, grown), grown > 0
