# SPDX-License-Identifier: Apache-2.0
"""Where the object is, from cameras and masks alone: its ball and its visual hull."""

import logging

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera, viewed_point

logger = logging.getLogger(__name__)

_MIN_SURFACE = 50
_BOX_CELLS = 64


def ball_of_cameras(cameras: Camera) -> tuple[Float[Tensor, "3"], float]:
    """Center and radius of what the cameras look at.

    The center is the point nearest to all optical axes (least squares), the radius that of the largest ball around it
    that the nearest camera still sees whole.

    Args:
        cameras: C of them.
    """
    center, _ = viewed_point(cameras)
    half_size = cameras.K.new_tensor([cameras.width, cameras.height]) / 2
    slope = (half_size / cameras.K[:, [0, 1], [0, 1]]).amin(-1)
    distance = (cameras.center - center).norm(dim=-1)
    radius = float((distance * slope / (1 + slope.square()).sqrt()).median())
    return center, radius


def carve(
    cameras: Camera,
    foreground: Float[Tensor, "c h w"],
    grid: Float[Tensor, "n 3"],
    tolerance: float = 0.03,
) -> Bool[Tensor, " n"]:
    """Which points belong to the visual hull.

    A point does if all but a share ``tolerance`` of the views that have it in the frame show it inside the mask.

    Args:
        cameras: C of them.
        foreground: masks of the object, in [0, 1].
        grid: points, world frame.
        tolerance: share of views that may disagree, for masks that are not perfect.
    """
    seen, inside = torch.zeros(len(grid), device=grid.device), torch.zeros(len(grid), device=grid.device)
    size = grid.new_tensor([cameras.width, cameras.height])
    for index in range(len(cameras)):
        uv, depth = cameras[index].project(grid)
        visible = (depth > 0) & (uv >= 0).all(-1) & (uv < size).all(-1)
        sampled = F.grid_sample(
            foreground[index][None, None], (2 * uv / size - 1)[None, None], mode="nearest", align_corners=False
        )
        seen += visible
        inside += visible * (sampled[0, 0, 0] > 0.5)
    return (seen > 0.3 * len(cameras)) & (inside >= (1 - tolerance) * seen)


def grid_points(center: Float[Tensor, "3"], radius: float, resolution: int) -> Float[Tensor, "n 3"]:
    """Centers of a cube's voxels, the last axis running fastest.

    Args:
        center: of the cube.
        radius: half its side.
        resolution: voxels along a side.
    """
    ticks = (torch.arange(resolution, device=center.device) + 0.5) * (2 * radius / resolution) - radius
    return torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(-1, 3) + center


def visual_hull(
    cameras: Camera,
    foreground: Float[Tensor, "c h w"],
    center: Float[Tensor, "3"],
    radius: float,
    resolution: int = 64,
    tolerance: float = 0.03,
) -> tuple[Float[Tensor, "n 3"], float] | None:
    """Surface voxels of the visual hull, and the voxels' side; None if the masks leave nothing or no surface.

    Args:
        cameras: C of them.
        foreground: masks of the object, in [0, 1].
        center: middle of the voxel grid, world frame.
        radius: half its side, scene units.
        resolution: voxels along a side.
        tolerance: see ``carve``.
    """
    grid = grid_points(center, radius, resolution)
    hull = carve(cameras, foreground, grid, tolerance).reshape(resolution, resolution, resolution)
    outside = F.max_pool3d((~hull).float()[None, None], 3, 1, 1)[0, 0] > 0
    surface = grid[(hull & outside).reshape(-1)]
    if len(surface) < _MIN_SURFACE:
        logger.info("The masks carve away everything but %d voxels; starting from random points instead.", len(surface))
        return None
    return surface, 2 * radius / resolution


def object_box(
    cameras: Camera, foreground: Tensor | None
) -> tuple[Bool[Tensor, "a b c"], Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Cells that may hold the object, cut to their box, and the box's corners, world frame.

    The cells are those of the visual hull and their neighbors, or all that the cameras look at without masks.

    Args:
        cameras: C of them.
        foreground: masks (C, H, W), or None.
    """
    center, radius = ball_of_cameras(cameras)
    side = 2 * radius / _BOX_CELLS
    hull = torch.ones(_BOX_CELLS, _BOX_CELLS, _BOX_CELLS, dtype=torch.bool, device=center.device)
    if foreground is not None:
        carved = carve(cameras, foreground, grid_points(center, radius, _BOX_CELLS)).reshape(hull.shape)
        if bool(carved.any()):
            hull = F.max_pool3d(carved.float()[None, None], 3, 1, 1)[0, 0] > 0
        else:
            logger.info("The masks carve everything away; fitting all that the cameras look at instead.")
    cells = hull.nonzero()
    first, last = cells.amin(0), cells.amax(0) + 1
    lower = center - radius + first * side
    box = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return hull[box], lower, lower + (last - first) * side


def colors_of_points(
    points: Float[Tensor, "n 3"],
    cameras: Camera,
    images: Float[Tensor, "c 3 h w"],
    max_views: int = 24,
) -> Float[Tensor, "n 3"]:
    """Mean color of the pixels that points fall on, over some views; occlusion is not looked at.

    Args:
        points: world frame.
        cameras: C of them.
        images: RGB in [0, 1].
        max_views: views used, spread evenly.
    """
    total, weight = torch.zeros_like(points), points.new_zeros(len(points), 1)
    size = points.new_tensor([cameras.width, cameras.height])
    for index in range(0, len(cameras), max(1, len(cameras) // max_views)):
        uv, depth = cameras[index].project(points)
        visible = ((depth > 0) & (uv >= 0).all(-1) & (uv < size).all(-1))[:, None].to(points)
        sampled = F.grid_sample(
            images[index][None], (2 * uv / size - 1)[None, None], mode="bilinear", align_corners=False
        )
        total += visible * sampled[0, :, 0].T
        weight += visible
    return total / weight.clamp_min(1)
