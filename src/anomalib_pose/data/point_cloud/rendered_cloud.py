# SPDX-License-Identifier: Apache-2.0
"""A cloud on a square grid of cells with its views: what all sources of clouds give, and how it is made from points."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from anomalib_pose.geometry import so3_exp
from anomalib_pose.render.point_normals import grid_normals, grid_spacing, neighbor_normals, point_spacing
from anomalib_pose.render.points import VIEW_ANGLES, render_views, to_view_frame, view_rotations

_PLAIN_NEIGHBoRS = 30
_NEIGHBoRS_BETWEEN = 3
_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class RenderSettings:
    """How clouds are drawn.

    Args:
        size: width and height of the views in pixels, and of the grid in cells.
        about_x: degrees by which views are turned about x.
        about_y: degrees by which further views are turned about y.
        tilt: degrees about x by which the cloud is turned before all else.
        point_size: side of a point's square in pixels of a window of 1024; None to choose it so that no holes show.
        depth_tolerance: points this much behind the nearest one of their pixel are visible too, in units of the
            points; None for the paper's rule, the nearest point alone.
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
        """Settings with the angles of five, nine or eleven views; see the class for the other arguments.

        Raises:
            ValueError: if there are no angles for that number.
        """
        if views not in VIEW_ANGLES:
            msg = f"views should be one of {', '.join(map(str, VIEW_ANGLES))}, got {views}."
            raise ValueError(msg)
        about_x, about_y = VIEW_ANGLES[views]
        return cls(size, about_x, about_y, point_size=point_size, depth_tolerance=depth_tolerance)


@dataclass(frozen=True)
class RenderedCloud:
    """A cloud on a grid, its views, and where they show each of its ``n = size * size`` cells, taken row by row.

    Args:
        points: positions (size, size, 3), as they are stored; 0 in cells without a point.
        valid: cells that hold a point (size, size).
        organized: whether neighboring cells are neighbors in space, as a depth camera sees them.
        gt_mask: defective cells (size, size); of the photograph, where the cloud has holes.
        rgb: photograph (3, size, size), bytes, or None if there is none.
        views: drawn views (v, 3, size, size), bytes.
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
    """Draw the cloud of a depth camera (+x right, +y down, +z forward).

    Args:
        xyz: positions (H, W, 3); z is 0 where there is no point.
        settings: how.
        gt_mask: mask of the defect (H, W) in [0, 1]; None if there is none.
        rgb: photograph (3, H, W) in [0, 1].

    Raises:
        ValueError: if no points are left on the grid, or they lie in one place.
    """
    size = settings.size
    points = nearest_resize(xyz, size)
    valid = points[..., 2] != 0
    points = torch.where(valid[..., None], points, 0.0)
    gt = torch.zeros(size, size, dtype=torch.bool) if gt_mask is None else resize_mask(gt_mask, size)
    normals, spacing = grid_normals(points, valid), grid_spacing(points, valid)
    drawn = _draw(points[valid], normals[valid], gt[valid], spacing, valid.flatten(), settings)
    image = None if rgb is None else to_bytes(bicubic_resize(rgb, size))
    return RenderedCloud(points, valid, True, gt, image, *drawn)


def render_unorganized(points: Tensor, labels: Tensor, settings: RenderSettings, seed: int = 0) -> RenderedCloud:
    """Draw a plain cloud, of which as many points are taken, or made, as the grid has cells.

    Args:
        points: positions (n, 3); +x right, +y down, +z forward.
        labels: points of the defect (n,).
        settings: how.
        seed: chooses the points.

    Raises:
        ValueError: if there are fewer than three points, or they lie in one place.
    """
    size = settings.size
    chosen, chosen_labels = resample(points, labels, size * size, seed)
    valid = torch.ones(size, size, dtype=torch.bool)
    normals = neighbor_normals(chosen, _PLAIN_NEIGHBoRS)
    drawn = _draw(chosen, normals, chosen_labels, point_spacing(chosen), valid.flatten(), settings)
    return RenderedCloud(chosen.reshape(size, size, 3), valid, False, chosen_labels.reshape(size, size), None, *drawn)


def resample(points: Tensor, labels: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Exactly ``count`` points and their labels.

    Of more points, one is kept in each occupied cell of the coarsest lattice with enough of them: spread evenly
    over the surface, much faster than farthest points are found. To fewer, points between neighbors are added,
    with the label of the nearer one.

    Args:
        points: positions (n, 3), at least two.
        labels: labels (n,).
        count: number of points wanted.
        seed: chooses among points that would do alike.

    Raises:
        ValueError: if there are fewer than two points.
    """
    if len(points) < 2:
        msg = f"A cloud of {len(points)} points cannot be resampled: expected two or more."
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    if len(points) < count:
        return _with_points_between(points, labels, count - len(points), rng)
    kept = torch.from_numpy(_spread(points.double().numpy(), count, rng))
    return points[kept], labels[kept]


def front_view(views: int) -> int:
    """Index of the view from the front: of five, nine and eleven views, the middle one of those about x."""
    return views // 4


def to_bytes(image: Tensor) -> Tensor:
    """Values in [0, 1] as bytes."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def nearest_resize(grid: Tensor, size: int) -> Tensor:
    """Grid (H, W, ...) with ``size`` rows and columns, each taken from the nearest one before it."""
    rows, columns = (torch.arange(size) * length // size for length in grid.shape[:2])
    return grid[rows][:, columns]


def bicubic_resize(channels: Tensor, size: int) -> Tensor:
    """Image (C, H, W) in [0, 1] as (C, size, size)."""
    if tuple(channels.shape[-2:]) == (size, size):
        return channels
    resized = torch.nn.functional.interpolate(channels[None], (size, size), mode="bicubic", antialias=True)
    return resized[0].clamp(0, 1)


def resize_mask(mask: Tensor, size: int) -> Tensor:
    """Mask (H, W) in [0, 1] as flags (size, size)."""
    return bicubic_resize(mask[None], size)[0] > 0.5


def _draw(
    points: Tensor, normals: Tensor, labels: Tensor, spacing: float, cells: Tensor, settings: RenderSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views, their masks, and pixels and visibility of all cells, of which ``cells`` (n,) hold the points."""
    tilt = so3_exp(torch.tensor([math.radians(settings.tilt), 0.0, 0.0], dtype=points.dtype))
    shown = render_views(
        to_view_frame(points) @ tilt.T,
        to_view_frame(normals) @ tilt.T,
        view_rotations(settings.about_x, settings.about_y),
        spacing=spacing,
        size=settings.size,
        point_size=settings.point_size,
        depth_tolerance=settings.depth_tolerance,
    )
    views = to_bytes(shown.images)[:, None].repeat(1, 3, 1, 1)
    pixels = torch.zeros(len(views), len(cells), 2, dtype=torch.int16)
    visible = torch.zeros(len(views), len(cells), dtype=torch.bool)
    pixels[:, cells] = shown.pixels.to(torch.int16)
    visible[:, cells] = shown.visible
    return views, shown.masks(labels), pixels, visible


def _spread(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` points, evenly spread."""
    order = rng.permutation(len(points))
    offset = points[order] - points.min(0)
    extent = max(float(offset.max()), np.finfo(np.float64).tiny)
    low, high = 1, 1 << 20  # cells along the longest side
    kept = order
    while high - low > 1:
        cells = (low + high) // 2
        code = np.minimum(offset * (cells / extent), cells - 1).astype(np.int64) @ [1 << 42, 1 << 21, 1]
        first = np.unique(code, return_index=True)[1]
        if len(first) >= count:
            high, kept = cells, order[np.sort(first)]
        else:
            low = cells
    return np.sort(kept[:count])


def _with_points_between(
    points: Tensor, labels: Tensor, missing: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    xyz = points.double().numpy()
    neighbors = min(_NEIGHBoRS_BETWEEN, len(xyz) - 1)
    anchor = rng.integers(0, len(xyz), missing)
    _, near = cKDTree(xyz).query(xyz[anchor], np.arange(2, neighbors + 2))
    other = near[np.arange(missing), rng.integers(0, neighbors, missing)]
    share = rng.choice(_SHARES, missing)
    between = torch.from_numpy(xyz[anchor] + share[:, None] * (xyz[other] - xyz[anchor])).to(points.dtype)
    nearer = torch.from_numpy(np.where(share <= 0.5, anchor, other))
    return torch.cat([points, between]), torch.cat([labels, labels[nearer]])
