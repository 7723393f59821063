# SPDX-License-Identifier: Apache-2.0
"""Location of the object from cameras and masks alone: bounding ball, visual hull, bounding box."""

import logging

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera, viewed_point

logger = logging.getLogger(__name__)

_MIN_SURFACE_VOXELS = 50
_BOX_CELLS = 64


def ball_of_cameras(cameras: Camera) -> tuple[Float[Tensor, "3"], float]:
    """Return the center and the radius of the ball that the cameras look at.

    The center is the point nearest to all optical axes (least squares). Each camera has a largest ball around the
    center that fits into its image. The radius is the median of these balls' radii.

    Args:
        cameras: C cameras.
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
    """Return which points belong to the visual hull.

    A point belongs to the hull under two conditions. It lies in the frame of more than 0.3 of all views. It lies inside
    the mask of at least ``1 - tolerance`` of these views.

    Args:
        cameras: C cameras.
        foreground: masks of the object, in [0, 1].
        grid: points, world frame.
        tolerance: fraction of the views that may disagree, for imperfect masks.
    """
    in_frame, in_mask = torch.zeros(len(grid), device=grid.device), torch.zeros(len(grid), device=grid.device)
    size = grid.new_tensor([cameras.width, cameras.height])
    for index in range(len(cameras)):
        uv, depth = cameras[index].project(grid)
        visible = (depth > 0) & (uv >= 0).all(-1) & (uv < size).all(-1)
        sampled = F.grid_sample(
            foreground[index][None, None], (2 * uv / size - 1)[None, None], mode="nearest", align_corners=False
        )
        in_frame += visible
        in_mask += visible * (sampled[0, 0, 0] > 0.5)
    return (in_frame > 0.3 * len(cameras)) & (in_mask >= (1 - tolerance) * in_frame)


def grid_points(center: Float[Tensor, "3"], radius: float, resolution: int) -> Float[Tensor, "n 3"]:
    """Return the centers of a cube's voxels; the last axis varies fastest.

    Args:
        center: center of the cube.
        radius: half the side of the cube.
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
    """Return the centers of the visual hull's surface voxels, and the side of a voxel; None if the hull is too small.

    Args:
        cameras: C cameras.
        foreground: masks of the object, in [0, 1].
        center: center of the voxel grid, world frame.
        radius: half the side of the grid, scene units.
        resolution: voxels along a side.
        tolerance: see ``carve``.
    """
    grid = grid_points(center, radius, resolution)
    hull = carve(cameras, foreground, grid, tolerance).reshape(resolution, resolution, resolution)
    outside = F.max_pool3d((~hull).float()[None, None], 3, 1, 1)[0, 0] > 0
    surface = grid[(hull & outside).reshape(-1)]
    if len(surface) < _MIN_SURFACE_VOXELS:
        logger.info("The visual hull has only %d surface voxels. The fit starts from random points.", len(surface))
        return None
    return surface, 2 * radius / resolution


def object_box(
    cameras: Camera, foreground: Tensor | None
) -> tuple[Bool[Tensor, "a b c"], Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Return the box of the object.

    Args:
        cameras: C cameras.
        foreground: masks (C, H, W), or None.

    Returns:
        A mask of the cells that may contain the object, and the box's lower and upper corner, world frame. The cells
        are those of the visual hull and their neighbors. Without masks they are all cells that the cameras look at.
    """
    center, radius = ball_of_cameras(cameras)
    side = 2 * radius / _BOX_CELLS
    hull = torch.ones(_BOX_CELLS, _BOX_CELLS, _BOX_CELLS, dtype=torch.bool, device=center.device)
    if foreground is not None:
        carved = carve(cameras, foreground, grid_points(center, radius, _BOX_CELLS)).reshape(hull.shape)
        if bool(carved.any()):
            hull = F.max_pool3d(carved.float()[None, None], 3, 1, 1)[0, 0] > 0
        else:
            logger.info("The visual hull is empty. The fit uses the whole region that the cameras look at.")
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
    """Return the mean color at the projections of points, without regard to occlusion.

    Args:
        points: world frame.
        cameras: C cameras.
        images: RGB in [0, 1].
        max_views: number of views, spread evenly.
    """
    color_sum, view_count = torch.zeros_like(points), points.new_zeros(len(points), 1)
    size = points.new_tensor([cameras.width, cameras.height])
    for index in range(0, len(cameras), max(1, len(cameras) // max_views)):
        uv, depth = cameras[index].project(points)
        visible = ((depth > 0) & (uv >= 0).all(-1) & (uv < size).all(-1))[:, None].to(points)
        sampled = F.grid_sample(
            images[index][None], (2 * uv / size - 1)[None, None], mode="bilinear", align_corners=False
        )
        color_sum += visible * sampled[0, :, 0].T
        view_count += visible
    return color_sum / view_count.clamp_min(1)
