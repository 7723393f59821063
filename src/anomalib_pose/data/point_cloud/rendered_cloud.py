# SPDX-License-Identifier: Apache-2.0
"""A point cloud on a square grid of cells with its rendered views, made from organized or unorganized points."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from anomalib_pose.data.images import resize_bicubic
from anomalib_pose.geometry import so3_exp
from anomalib_pose.render.point_normals import grid_normals, grid_spacing, neighbor_normals, point_spacing
from anomalib_pose.render.points import VIEW_ANGLES, render_views, to_view_frame, view_rotations

_NORMAL_NEIGHBORS = 30
_INTERPOLATION_NEIGHBORS = 3
_INTERPOLATION_WEIGHTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class RenderSettings:
    """Settings of the rendering of clouds.

    Args:
        size: width and height of the views in pixels, and of the grid in cells.
        about_x: rotations of views about x, degrees.
        about_y: rotations of further views about y, degrees.
        tilt: rotation of the cloud about x before all other rotations, degrees.
        point_size: side of a point's square in pixels of a window of 1024; None to choose it so that no holes show.
        depth_tolerance: points up to this distance behind the nearest point of their pixel are visible too, in units
            of the points; None for the paper's rule, the nearest point alone.
    """

    size: int = 336
    about_x: tuple[float, ...] = VIEW_ANGLES[9][0]
    about_y: tuple[float, ...] = VIEW_ANGLES[9][1]
    tilt: float = 0.0
    point_size: float | None = None
    depth_tolerance: float | None = None

    @classmethod
    def of_views(
        cls,
        views: int,
        size: int = 336,
        *,
        point_size: float | None = None,
        depth_tolerance: float | None = None,
    ) -> "RenderSettings":
        """Return settings with the angles of five, nine or eleven views; see the class for the other arguments.

        Raises:
            ValueError: if ``views`` is not 5, 9 or 11.
        """
        if views not in VIEW_ANGLES:
            msg = f"views should be one of {', '.join(map(str, VIEW_ANGLES))}, got {views}."
            raise ValueError(msg)
        about_x, about_y = VIEW_ANGLES[views]
        return cls(size, about_x, about_y, point_size=point_size, depth_tolerance=depth_tolerance)


@dataclass(frozen=True)
class RenderedCloud:
    """A cloud on a grid, its views, and the pixels of its ``n = size * size`` cells, taken row by row, in the views.

    Args:
        points: positions (size, size, 3) in the sensor's frame and unit; 0 in cells without a point.
        valid: cells that hold a point (size, size).
        organized: whether neighboring cells are neighbors in space, as in the image of a depth camera.
        gt_mask: defective cells (size, size); where the cloud has holes, defective pixels of the photograph.
        rgb: photograph (3, size, size), bytes, or None if there is none.
        views: rendered views (v, 3, size, size), bytes.
        view_masks: pixels of the views that show a defect (v, size, size).
        pixels: row and column of each cell's point (v, n, 2), int16; 0 for cells without one.
        visible: whether the view shows the cell's point (v, n).
    """

    points: Tensor
    valid: Tensor
    organized: bool
    gt_mask: Tensor
    rgb: Tensor | None
    views: Tensor
    view_masks: Tensor
    pixels: Tensor
    visible: Tensor


def render_organized(
    xyz: Tensor, settings: RenderSettings, gt_mask: Tensor | None = None, rgb: Tensor | None = None
) -> RenderedCloud:
    """Render the cloud of a depth camera (+x right, +y down, +z forward).

    Args:
        xyz: positions (H, W, 3); z is 0 where there is no point.
        settings: settings of the rendering.
        gt_mask: mask of the defect (H, W) in [0, 1]; None if there is none.
        rgb: photograph (3, H, W) in [0, 1].

    Raises:
        ValueError: if no points are left on the grid, or all have the same position.
    """
    size = settings.size
    points = resize_nearest(xyz, size)
    valid = points[..., 2] != 0
    points = torch.where(valid[..., None], points, 0.0)
    gt = torch.zeros(size, size, dtype=torch.bool) if gt_mask is None else resize_mask(gt_mask, size)
    normals, spacing = grid_normals(points, valid), grid_spacing(points, valid)
    renderings = _render(points[valid], normals[valid], gt[valid], spacing, valid.flatten(), settings)
    image = None if rgb is None else to_bytes(resize_bicubic(rgb, size))
    return RenderedCloud(points, valid, True, gt, image, *renderings)


def render_unorganized(points: Tensor, labels: Tensor, settings: RenderSettings, seed: int = 0) -> RenderedCloud:
    """Render an unorganized cloud, after resampling it to one point for each cell of the grid.

    Args:
        points: positions (n, 3); +x right, +y down, +z forward.
        labels: points of the defect (n,), bool.
        settings: settings of the rendering.
        seed: seed of the resampling.

    Raises:
        ValueError: if there are fewer than three points, or all have the same position.
    """
    size = settings.size
    points, labels = resample(points, labels, size * size, seed)
    valid = torch.ones(size, size, dtype=torch.bool)
    normals = neighbor_normals(points, _NORMAL_NEIGHBORS)
    renderings = _render(points, normals, labels, point_spacing(points), valid.flatten(), settings)
    return RenderedCloud(points.reshape(size, size, 3), valid, False, labels.reshape(size, size), None, *renderings)


def resample(points: Tensor, labels: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return exactly ``count`` points and their labels.

    A larger cloud is reduced to one point in each occupied cell of a lattice, the coarsest with enough occupied cells.
    These points are spread evenly over the surface, and much faster to compute than farthest-point sampling. A smaller
    cloud gets additional points between neighbors, with the label of the nearer neighbor.

    Args:
        points: positions (n, 3), at least two.
        labels: labels (n,).
        count: number of returned points.
        seed: seed of the choice among equivalent points.

    Raises:
        ValueError: if there are fewer than two points.
    """
    if len(points) < 2:
        msg = f"A cloud of {len(points)} points cannot be resampled: expected two or more."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    if len(points) < count:
        return _add_points_between(points, labels, count - len(points), rng)
    selected = torch.from_numpy(_select_evenly(points.double().numpy(), count, rng))
    return points[selected], labels[selected]


def front_view_index(views: int) -> int:
    """Return the index of the front view of five, nine or eleven views: the middle one of those rotated about x."""
    return views // 4


def to_bytes(image: Tensor) -> Tensor:
    """Convert values in [0, 1] to bytes in [0, 255]."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def resize_nearest(grid: Tensor, size: int) -> Tensor:
    """Resize a grid (H, W, ...) to (size, size, ...); each row and column is copied from the nearest one before it."""
    rows, columns = (torch.arange(size) * length // size for length in grid.shape[:2])
    return grid[rows][:, columns]


def resize_mask(mask: Tensor, size: int) -> Tensor:
    """Resize a mask (H, W) in [0, 1] to flags (size, size)."""
    return resize_bicubic(mask[None], size)[0] > 0.5


def _render(
    points: Tensor, normals: Tensor, labels: Tensor, spacing: float, cells: Tensor, settings: RenderSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Render views and masks, and return pixels and visibility of all cells; ``cells`` (n,) marks those with points."""
    tilt = so3_exp(torch.tensor([math.radians(settings.tilt), 0.0, 0.0], dtype=points.dtype))
    rendering = render_views(
        to_view_frame(points) @ tilt.T,
        to_view_frame(normals) @ tilt.T,
        view_rotations(settings.about_x, settings.about_y),
        spacing=spacing,
        size=settings.size,
        point_size=settings.point_size,
        depth_tolerance=settings.depth_tolerance,
    )
    views = to_bytes(rendering.images)[:, None].repeat(1, 3, 1, 1)
    pixels = torch.zeros(len(views), len(cells), 2, dtype=torch.int16)
    visible = torch.zeros(len(views), len(cells), dtype=torch.bool)
    pixels[:, cells] = rendering.pixels.to(torch.int16)
    visible[:, cells] = rendering.visible
    return views, rendering.masks(labels), pixels, visible


def _select_evenly(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of ``count`` points that are spread evenly over the surface."""
    order = rng.permutation(len(points))
    offset = points[order] - points.min(0)
    extent = max(float(offset.max()), np.finfo(np.float64).tiny)
    low, high = 1, 1 << 20  # cells along the longest side
    selected = order
    while high - low > 1:
        cells = (low + high) // 2
        code = np.minimum(offset * (cells / extent), cells - 1).astype(np.int64) @ [1 << 42, 1 << 21, 1]
        first = np.unique(code, return_index=True)[1]
        if len(first) >= count:
            high, selected = cells, order[np.sort(first)]
        else:
            low = cells
    return np.sort(selected[:count])


def _add_points_between(
    points: Tensor, labels: Tensor, missing: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Append ``missing`` points between random points and their nearest neighbors."""
    xyz = points.double().numpy()
    neighbors = min(_INTERPOLATION_NEIGHBORS, len(xyz) - 1)
    anchor = rng.integers(0, len(xyz), missing)
    _, nearest = cKDTree(xyz).query(xyz[anchor], np.arange(2, neighbors + 2))
    neighbor = nearest[np.arange(missing), rng.integers(0, neighbors, missing)]
    weight = rng.choice(_INTERPOLATION_WEIGHTS, missing)
    between = torch.from_numpy(xyz[anchor] + weight[:, None] * (xyz[neighbor] - xyz[anchor])).to(points.dtype)
    nearer = torch.from_numpy(np.where(weight <= 0.5, anchor, neighbor))
    return torch.cat([points, between]), torch.cat([labels, labels[nearer]])
