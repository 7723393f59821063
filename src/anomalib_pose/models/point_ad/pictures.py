# SPDX-License-Identifier: Apache-2.0
"""Pictures and .ply files of scored clouds."""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional
from torchvision.utils import make_grid

from anomalib_pose.models.point_ad.cloud_grid import CloudGrid, pixels_with_points
from anomalib_pose.render.point_normals import grid_normals, grid_spacing, neighbor_normals, point_spacing
from anomalib_pose.render.points import render_views, to_view_frame, view_rotations
from anomalib_pose.scene.ply_table import write_ply_vertices

_HEAT = 0.6
"""Mixing weight of the heat in the picture of a view."""
_BACKGROUND = 0.995
"""Brightness at or above which a pixel counts as white background."""
_TILT = (-30.0,)
"""Rotation about x, in degrees, of the cloud in score colors."""
_BGR = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO).reshape(256, 3)
_COLORS = torch.from_numpy(_BGR[:, ::-1].copy())


def heat_colors(values: Tensor) -> Tensor:
    """Map values to the colormap Turbo, from dark blue for 0 to dark red for 1: RGB bytes (..., 3).

    Args:
        values: (...), clamped to [0, 1].
    """
    return _COLORS[(values.detach().cpu().clamp(0, 1) * 255).round().long()]


def render_view_sheet(views: Tensor, grid: CloudGrid, values: Tensor) -> Tensor:
    """Arrange all views in a square sheet, with the scores of their visible points as heat.

    Args:
        views: rendered views (v, 3, s, s), RGB in [0, 1].
        grid: grid of the cloud.
        values: scores of the cells in [0, 1] (s, s).

    Returns:
        Picture (3, h, w) in [0, 1].
    """
    size = views.shape[-1]
    occupied = pixels_with_points(grid.pixels.cpu(), grid.visible.cpu(), size)
    columns = math.ceil(math.sqrt(len(views)))
    pictures = torch.ones(columns * columns, 3, size, size)
    for index, view in enumerate(views.detach().cpu()):
        visible = grid.visible[index].cpu()
        row, column = grid.pixels[index].cpu()[visible].long().unbind(-1)
        heat = torch.zeros(size, size)
        heat[row, column] = values.detach().cpu().flatten()[visible].float()
        # pixels between the points have the heat of the nearest point
        nearest = distance_transform_edt(~occupied[index].numpy(), return_distances=False, return_indices=True)
        colors = heat_colors(heat[nearest[0], nearest[1]]).permute(2, 0, 1) / 255
        mixed = torch.lerp(view, colors, _HEAT)
        pictures[index] = torch.where((view < _BACKGROUND).any(0), mixed, view)
    return make_grid(pictures, columns, padding=max(1, size // 100), pad_value=0.5)


def render_scored_cloud(grid: CloudGrid, values: Tensor) -> Tensor:
    """Render the cloud in the colors of its scores, from the front and above.

    Args:
        grid: grid of the cloud.
        values: scores of the cells in [0, 1] (s, s).

    Returns:
        Picture (3, s, s) in [0, 1] on white.
    """
    valid = grid.valid.cpu()
    cells = grid.points.cpu()
    points = cells[valid]
    if grid.organized:
        normals, spacing = grid_normals(cells, valid)[valid], grid_spacing(cells, valid)
    else:
        normals, spacing = neighbor_normals(points), point_spacing(points)
    size = valid.shape[-1]
    rendering = render_views(
        to_view_frame(points), to_view_frame(normals), view_rotations(_TILT, ()), spacing=spacing, size=size
    )
    owners = rendering.point_indices[0].long()
    colors = heat_colors(values.cpu()[valid])[owners.clamp_min(0)] / 255
    colors[owners < 0] = 1.0
    flat = functional.avg_pool2d(colors.permute(2, 0, 1)[None], owners.shape[-1] // size)[0]
    # only half of the shading, so that colors stay distinguishable
    return flat * (1 + rendering.images[0]) / 2


def write_scored_cloud(path: Path, points: Tensor, values: Tensor) -> None:
    """Write a cloud with its scores as a binary .ply with x, y, z, red, green, blue and score.

    Args:
        path: the file; its folder is created.
        points: positions (n, 3), in the unit of the recording.
        values: scores (n,); colors are those of ``heat_colors``.
    """
    table = np.empty(
        len(points),
        [(axis, "f4") for axis in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")] + [("score", "f4")],
    )
    for index, axis in enumerate("xyz"):
        table[axis] = points[:, index].cpu().numpy()
    for index, name in enumerate(("red", "green", "blue")):
        table[name] = heat_colors(values)[:, index].numpy()
    table["score"] = values.detach().cpu().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_ply_vertices(path, table)
