# SPDX-License-Identifier: Apache-2.0
"""Alignment of a query with a rendered view as a fixed number of tensor operations."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.deploy.graph.linear_solver import solve_positive
from anomalib_pose.deploy.graph.relighting import relit_in_windows
from anomalib_pose.deploy.graph.resample import pixel_centers, sample
from anomalib_pose.geometry import projection_jacobian, skew

ROBUST_SCALE = 0.1
DAMPING = 1e-3
_LEAST_DAMPING = 1e-6
_LONGEST_TURN = 0.5
_LIGHT_STEPS = 4  # more of them find the same poses


class View(NamedTuple):
    """Rendered views.

    Args:
        rgb: color over white (B, 3, H, W).
        depth: along the optical axis (B, H, W), beyond the silhouette that of the nearest surface.
        alpha: 1 on the object (B, H, W).
    """

    rgb: Float[Tensor, "b 3 h w"]
    depth: Float[Tensor, "b h w"]
    alpha: Float[Tensor, "b h w"]


class _System(NamedTuple):
    """Cost (B), normal matrix (B, 6, 6) and gradient (B, 6) at a motion."""

    cost: Tensor
    hessian: Tensor
    gradient: Tensor


def unproject(depth: Float[Tensor, "b h w"], intrinsics: Float[Tensor, "b 4"]) -> Float[Tensor, "b 3 h w"]:
    """Surface points of a view in its own camera's frame.

    Args:
        depth: of each pixel.
        intrinsics: (fx, fy, cx, cy).
    """
    centers = pixel_centers(depth.shape[1], depth.shape[2], depth)
    slopes = (centers - intrinsics[:, 2:, None, None]) / intrinsics[:, :2, None, None]
    return torch.cat([slopes, torch.ones_like(slopes[:, :1])], 1) * depth[:, None]


def project(
    motion: Float[Tensor, "b 4 4"],
    points: Float[Tensor, "b 3 n"],
    intrinsics: Float[Tensor, "b 4"],
) -> tuple[Float[Tensor, "b 3 n"], Float[Tensor, "b 2 n"]]:
    """Surface points of a view in the query's camera, and their pixel coordinates there.

    Args:
        motion: view's camera frame to the query's.
        points: in the view's camera frame, see ``unproject``.
        intrinsics: (fx, fy, cx, cy) of the query.
    """
    moved = motion[:, :3, :3] @ points + motion[:, :3, 3:]
    inverse = 1 / moved[:, 2:].clamp(min=1e-6)
    return moved, moved[:, :2] * inverse * intrinsics[:, :2, None] + intrinsics[:, 2:, None]


class Pyramid(NamedTuple):
    """One size of query and view.

    Args:
        query: the query (B, 3, h, w).
        rgb: color of the view's N pixels that take part (B, 3, N).
        points: their surface in the view's camera's frame (B, 3, N).
        jacobian: derivatives of their color by a tangent (v, omega) that moves the view's points (B, 6, 3 N).
        products: products of those derivatives, summed over the colors (B, 36, N).
        weight: 1 where pixels count (B, N).
        intrinsics: (fx, fy, cx, cy) at this size (B, 4).
    """

    query: Float[Tensor, "b 3 h w"]
    rgb: Float[Tensor, "b 3 n"]
    points: Float[Tensor, "b 3 n"]
    jacobian: Float[Tensor, "b 6 n3"]
    products: Float[Tensor, "b 36 n"]
    weight: Float[Tensor, "b n"]
    intrinsics: Float[Tensor, "b 4"]


def derivatives(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
    """Central differences along x, then along y, a pixel; the border is repeated."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    along_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    return torch.cat([along_x, along_y], 1)


def pyramid(
    query: Float[Tensor, "q 3 h w"],
    view: View,
    intrinsics: Float[Tensor, "b 4"],
    motion: Float[Tensor, "b 4 4"],
    divisor: int,
    stride: int = 1,
    *,
    starts: int = 1,
    silhouettes_only: bool,
    relight: bool = False,
) -> Pyramid:
    """Query and view at a part of their size.

    Args:
        query: windows of queries.
        view: rendered views, ``starts`` of them for each query.
        intrinsics: (fx, fy, cx, cy) of both.
        motion: where the alignment starts, view's camera frame to the query's.
        divisor: of the size.
        stride: one of so many of the view's pixels takes part, in each axis.
        starts: views a query.
        silhouettes_only: whether the background is unknown; where it is white, it counts like the object.
        relight: whether to bring the view into the light of the query first.
    """
    rgb, depth, alpha = view.rgb, view.depth[:, None], view.alpha[:, None]
    if divisor > 1:
        query, rgb = _smooth(F.avg_pool2d(query, divisor)), _smooth(F.avg_pool2d(rgb, divisor))
        depth, alpha = F.avg_pool2d(depth, divisor), F.avg_pool2d(alpha, divisor)
    intrinsics = intrinsics / divisor
    query = query.repeat_interleave(starts, 0)
    weight = (alpha > 0.5).to(rgb.dtype) if silhouettes_only else torch.ones_like(alpha)
    surface = unproject(depth[:, 0], intrinsics)
    _, uv = project(motion, surface.flatten(2), intrinsics)
    seen = sample(query, uv.unflatten(2, rgb.shape[2:]))
    if relight:
        rgb = relit_in_windows(seen, rgb, alpha[:, 0], surface.permute(0, 2, 3, 1), _LIGHT_STEPS)
    # the mean of both images' slopes leads farther than those of either
    slopes = derivatives(0.5 * (rgb + seen))
    rgb, slopes, points, weight = (part[:, :, ::stride, ::stride].flatten(2) for part in (rgb, slopes, surface, weight))
    by_u, by_v = _jacobian(points, intrinsics)
    along_x, along_y = slopes[:, None, :3], slopes[:, None, 3:]
    jacobian = by_u[:, :, None] * along_x + by_v[:, :, None] * along_y
    xx, xy, yy = ((a * b).sum(2) for a, b in ((along_x, along_x), (along_x, along_y), (along_y, along_y)))
    left, right = by_u * xx + by_v * xy, by_u * xy + by_v * yy
    products = left[:, :, None] * by_u[:, None] + right[:, :, None] * by_v[:, None]
    return Pyramid(query, rgb, points, jacobian.flatten(2), products.flatten(1, 2), weight[:, 0], intrinsics)


def _smooth(image: Tensor) -> Tensor:
    """A small binomial blur, which widens the basin of the alignment."""
    taps = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(image.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), kernel, groups=image.shape[1])


def align(
    level: Pyramid, motion: Float[Tensor, "b 4 4"], steps: int
) -> tuple[Float[Tensor, "b 4 4"], Float[Tensor, " b"]]:
    """Damped Gauss-Newton steps; a step that does not lower the cost is taken back and the damping raised.

    The residual ``query(pi(exp(xi) p)) - view(u)`` is taken at the view's pixels, whose surface points ``p`` are known;
    its slope is the mean of the query's and the view's, and Charbonnier weights bound what a defect can pull.

    Args:
        level: query and view.
        motion: view's camera frame to the query's, to start from.
        steps: how many; each looks the query up once.

    Returns:
        The motion, and the cost there.
    """
    now = _system(level, motion)
    damping = torch.full_like(now.cost, DAMPING)
    for _ in range(steps):
        tangent = -solve_positive(now.hessian, now.gradient, damping + _LEAST_DAMPING)
        moved = motion @ retract(tangent)
        then = _system(level, moved)
        better = then.cost < now.cost
        motion = torch.where(better[:, None, None], moved, motion)
        damping = torch.where(better, damping / 6, damping * 8).clamp(1e-6, 1e3)
        now = _System(
            torch.where(better, then.cost, now.cost),
            torch.where(better[:, None, None], then.hessian, now.hessian),
            torch.where(better[:, None], then.gradient, now.gradient),
        )
    return motion, now.cost


def retract(tangent: Float[Tensor, "b 6"]) -> Float[Tensor, "b 4 4"]:
    """The rotation of a tangent (v, omega) by series, and its ``v`` as translation: few operations, for small steps.

    A rotation of more than half a radian, which no step from a nearby view should take, is shortened to that.
    """
    angle = tangent[:, 3:].square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()
    omega = tangent[:, 3:] * (_LONGEST_TURN / angle).clamp(max=1.0)
    squared = omega.square().sum(1)[:, None, None]
    cross = skew(omega)
    sine = 1 - squared / 6 * (1 - squared / 20 * (1 - squared / 42))
    versine = 0.5 - squared / 24 * (1 - squared / 30 * (1 - squared / 56))
    rotation = torch.eye(3).to(tangent) + sine * cross + versine * (cross @ cross)
    upper = torch.cat([rotation, tangent[:, :3, None]], 2)
    lower = tangent.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(upper.shape[0], 1, 4)
    return torch.cat([upper, lower], 1)


def _system(level: Pyramid, motion: Tensor) -> _System:
    _, uv = project(motion, level.points, level.intrinsics)
    residual = sample(level.query, uv[:, :, None])[:, :, 0] - level.rgb
    root = (1 + residual.square().sum(1) / ROBUST_SCALE**2).sqrt()
    area = level.weight.sum(1).clamp(min=1)
    cost = ((root - 1) * level.weight).sum(1) / area
    weight = level.weight / (root * area[:, None])
    hessian = (level.products @ weight[:, :, None]).unflatten(1, (6, 6))[..., 0]
    gradient = level.jacobian @ (residual * weight[:, None]).flatten(1)[:, :, None]
    return _System(cost, hessian, gradient[..., 0])


def _jacobian(points: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives (B, 6, N) of column and row by the tangent (v, omega) that moves the points."""
    inverse = 1 / points[:, 2].clamp(min=1e-6)
    x, y = points[:, 0] * inverse, points[:, 1] * inverse
    focal_x, focal_y = intrinsics[:, :2, None, None].unbind(1)
    by_x, by_y = projection_jacobian(x, y, inverse, 1)
    return focal_x * by_x, focal_y * by_y
