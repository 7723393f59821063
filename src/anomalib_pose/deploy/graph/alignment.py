# SPDX-License-Identifier: Apache-2.0
"""Alignment of a query with a rendered view, as a fixed number of damped Gauss-Newton steps.

Twins: ``anomalib_pose.pose.surface_alignment.linearize`` for the normal equations (the cost to a relative 1e-4, normal
matrix and gradient to 1e-3 of their largest entry), and ``anomalib_pose.geometry.so3_exp`` for ``retract`` (to 1e-6).
The loop ``align`` has its twin in ``anomalib_pose.pose.gauss_newton.GaussNewtonRefiner``, whose number of steps depends
on the data. The tests check only the result of the loop, against the true pose.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.deploy.graph.linear_solver import solve_positive
from anomalib_pose.deploy.graph.relighting import relight_reference
from anomalib_pose.deploy.graph.resample import pixel_centers, sample
from anomalib_pose.geometry import projection_jacobian, skew

ROBUST_SCALE = 0.1
DAMPING = 1e-3
_MIN_DAMPING = 1e-6
_MAX_ANGLE = 0.5  # radians
_RELIGHTING_STEPS = 4  # more steps lead to the same poses


class DepthViews(NamedTuple):
    """Views of the object with depth.

    Args:
        rgb: color over white (B, 3, H, W).
        depth: along the optical axis (B, H, W); beyond the silhouette, the depth of the nearest surface pixel.
        alpha: 1 on the object, else 0 (B, H, W).
    """

    rgb: Float[Tensor, "b 3 h w"]
    depth: Float[Tensor, "b h w"]
    alpha: Float[Tensor, "b h w"]


class NormalEquations(NamedTuple):
    """Cost and its derivatives at a motion.

    Args:
        cost: mean robust cost (B).
        hessian: normal matrix (B, 6, 6).
        gradient: gradient for a tangent (v, omega) that moves the view's points (B, 6).
    """

    cost: Tensor
    hessian: Tensor
    gradient: Tensor


def unproject(depth: Float[Tensor, "b h w"], pinhole: Float[Tensor, "b 4"]) -> Float[Tensor, "b 3 h w"]:
    """Compute the surface point of each pixel, in the frame of the view's own camera.

    Args:
        depth: depth of each pixel along the optical axis.
        pinhole: (fx, fy, cx, cy) in pixels.
    """
    centers = pixel_centers(depth.shape[1], depth.shape[2], depth)
    slopes = (centers - pinhole[:, 2:, None, None]) / pinhole[:, :2, None, None]
    return torch.cat([slopes, torch.ones_like(slopes[:, :1])], 1) * depth[:, None]


def project(
    motion: Float[Tensor, "b 4 4"],
    points: Float[Tensor, "b 3 n"],
    pinhole: Float[Tensor, "b 4"],
) -> tuple[Float[Tensor, "b 3 n"], Float[Tensor, "b 2 n"]]:
    """Move surface points of a view into the query's camera and project them.

    Args:
        motion: transform from the view's camera frame to the query's.
        points: points in the view's camera frame, see ``unproject``.
        pinhole: (fx, fy, cx, cy) of the query in pixels.

    Returns:
        The points in the query's camera frame, and their pixel coordinates in the query.
    """
    moved = motion[:, :3, :3] @ points + motion[:, :3, 3:]
    inverse = 1 / moved[:, 2:].clamp(min=1e-6)
    return moved, moved[:, :2] * inverse * pinhole[:, :2, None] + pinhole[:, 2:, None]


class AlignmentLevel(NamedTuple):
    """Query and view at one image size, with the N pixels of the view that are compared.

    Args:
        query: the query (B, 3, h, w).
        rgb: colors of the view's pixels (B, 3, N).
        points: surface points of these pixels in the view's camera frame (B, 3, N).
        jacobian: derivatives of the pixels' colors for a tangent (v, omega) that moves the view's points (B, 6, 3 N).
        products: products of those derivatives, summed over the colors (B, 36, N).
        weight: 1 where a pixel counts, else 0 (B, N).
        pinhole: (fx, fy, cx, cy) at this size (B, 4).
    """

    query: Float[Tensor, "b 3 h w"]
    rgb: Float[Tensor, "b 3 n"]
    points: Float[Tensor, "b 3 n"]
    jacobian: Float[Tensor, "b 6 n3"]
    products: Float[Tensor, "b 36 n"]
    weight: Float[Tensor, "b n"]
    pinhole: Float[Tensor, "b 4"]


def central_differences(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
    """Compute derivatives per pixel, first along x, then along y; the border is repeated outwards.

    Args:
        image: (B, C, H, W).
    """
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    along_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    return torch.cat([along_x, along_y], 1)


def build_level(
    query: Float[Tensor, "q 3 h w"],
    view: DepthViews,
    pinhole: Float[Tensor, "b 4"],
    motion: Float[Tensor, "b 4 4"],
    divisor: int,
    stride: int = 1,
    *,
    starts: int = 1,
    silhouettes_only: bool,
    relight: bool = False,
) -> AlignmentLevel:
    """Reduce query and view to one size and precompute the terms that all steps at this size share.

    Args:
        query: windows of the queries.
        view: rendered views, ``starts`` of them for each query.
        pinhole: (fx, fy, cx, cy) of both at full size, in pixels.
        motion: initial transform from the view's camera frame to the query's.
        divisor: full size over size of this level.
        stride: distance in pixels, along each axis, between the pixels of the view that are compared.
        starts: views for each query.
        silhouettes_only: whether only pixels of the object count, because the background is unknown. A white
            background counts like the object.
        relight: whether to relight the view to match the query first.
    """
    rgb, depth, alpha = view.rgb, view.depth[:, None], view.alpha[:, None]
    if divisor > 1:
        query, rgb = _binomial_blur(F.avg_pool2d(query, divisor)), _binomial_blur(F.avg_pool2d(rgb, divisor))
        depth, alpha = F.avg_pool2d(depth, divisor), F.avg_pool2d(alpha, divisor)
    pinhole = pinhole / divisor
    query = query.repeat_interleave(starts, 0)
    weight = (alpha > 0.5).to(rgb.dtype) if silhouettes_only else torch.ones_like(alpha)
    surface = unproject(depth[:, 0], pinhole)
    _, uv = project(motion, surface.flatten(2), pinhole)
    warped_query = sample(query, uv.unflatten(2, rgb.shape[2:]))
    if relight:
        rgb = relight_reference(warped_query, rgb, alpha[:, 0], surface.permute(0, 2, 3, 1), _RELIGHTING_STEPS)
    # the mean of the gradients of both images converges from farther away than the gradients of one image
    gradients = central_differences(0.5 * (rgb + warped_query))
    rgb, gradients, points, weight = (
        part[:, :, ::stride, ::stride].flatten(2) for part in (rgb, gradients, surface, weight)
    )
    by_u, by_v = _jacobian(points, pinhole)
    along_x, along_y = gradients[:, None, :3], gradients[:, None, 3:]
    jacobian = by_u[:, :, None] * along_x + by_v[:, :, None] * along_y
    xx, xy, yy = ((a * b).sum(2) for a, b in ((along_x, along_x), (along_x, along_y), (along_y, along_y)))
    left, right = by_u * xx + by_v * xy, by_u * xy + by_v * yy
    products = left[:, :, None] * by_u[:, None] + right[:, :, None] * by_v[:, None]
    return AlignmentLevel(query, rgb, points, jacobian.flatten(2), products.flatten(1, 2), weight[:, 0], pinhole)


def _binomial_blur(image: Tensor) -> Tensor:
    """Blur with a binomial kernel of 5 x 5 pixels, which widens the basin of convergence."""
    taps = image.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (taps[:, None] * taps).expand(image.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), kernel, groups=image.shape[1])


def align(
    level: AlignmentLevel, motion: Float[Tensor, "b 4 4"], steps: int
) -> tuple[Float[Tensor, "b 4 4"], Float[Tensor, " b"]]:
    """Take damped Gauss-Newton steps; a step that does not lower the cost is undone and raises the damping.

    The residual ``query(pi(exp(xi) p)) - view(u)`` is taken at the view's pixels, whose surface points ``p`` come from
    their depth. Its gradient is the mean of the query's and the view's image gradient. Charbonnier weights bound the
    pull of a defect.

    Args:
        level: query and view.
        motion: initial transform from the view's camera frame to the query's.
        steps: number of steps; each samples the query once.

    Returns:
        The motion, and the cost at this motion.
    """
    current = linearize(level, motion)
    damping = torch.full_like(current.cost, DAMPING)
    for _ in range(steps):
        tangent = -solve_positive(current.hessian, current.gradient, damping + _MIN_DAMPING)
        candidate_motion = motion @ retract(tangent)
        candidate = linearize(level, candidate_motion)
        better = candidate.cost < current.cost
        motion = torch.where(better[:, None, None], candidate_motion, motion)
        damping = torch.where(better, damping / 6, damping * 8).clamp(1e-6, 1e3)
        current = NormalEquations(
            torch.where(better, candidate.cost, current.cost),
            torch.where(better[:, None, None], candidate.hessian, current.hessian),
            torch.where(better[:, None], candidate.gradient, current.gradient),
        )
    return motion, current.cost


def retract(tangent: Float[Tensor, "b 6"]) -> Float[Tensor, "b 4 4"]:
    """Compute the motion of a tangent (v, omega): the rotation as a series, ``v`` as the translation.

    This takes few operations and is meant for small steps. A rotation of more than half a radian, which no step from a
    nearby view should take, is shortened to half a radian.

    Args:
        tangent: (v, omega), radians.
    """
    angle = tangent[:, 3:].square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()
    omega = tangent[:, 3:] * (_MAX_ANGLE / angle).clamp(max=1.0)
    squared = omega.square().sum(1)[:, None, None]
    cross = skew(omega)
    sine = 1 - squared / 6 * (1 - squared / 20 * (1 - squared / 42))
    versine = 0.5 - squared / 24 * (1 - squared / 30 * (1 - squared / 56))
    rotation = torch.eye(3).to(tangent) + sine * cross + versine * (cross @ cross)
    upper = torch.cat([rotation, tangent[:, :3, None]], 2)
    lower = tangent.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(upper.shape[0], 1, 4)
    return torch.cat([upper, lower], 1)


def linearize(level: AlignmentLevel, motion: Float[Tensor, "b 4 4"]) -> NormalEquations:
    """Compute the robust cost at a motion and the normal equations of the next step.

    Args:
        level: query and view; its Jacobian approximates the Jacobian at the motion.
        motion: transform from the view's camera frame to the query's.
    """
    _, uv = project(motion, level.points, level.pinhole)
    residual = sample(level.query, uv[:, :, None])[:, :, 0] - level.rgb
    root = (1 + residual.square().sum(1) / ROBUST_SCALE**2).sqrt()
    area = level.weight.sum(1).clamp(min=1)
    cost = ((root - 1) * level.weight).sum(1) / area
    weight = level.weight / (root * area[:, None])
    hessian = (level.products @ weight[:, :, None]).unflatten(1, (6, 6))[..., 0]
    gradient = level.jacobian @ (residual * weight[:, None]).flatten(1)[:, :, None]
    return NormalEquations(cost, hessian, gradient[..., 0])


def _jacobian(points: Tensor, pinhole: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the derivatives (B, 6, N) of column and row for the tangent (v, omega) that moves the points."""
    inverse = 1 / points[:, 2].clamp(min=1e-6)
    x, y = points[:, 0] * inverse, points[:, 1] * inverse
    focal_x, focal_y = pinhole[:, :2, None, None].unbind(1)
    by_x, by_y = projection_jacobian(x, y, inverse, 1)
    return focal_x * by_x, focal_y * by_y
