# SPDX-License-Identifier: Apache-2.0
"""From scores of views to scores of points and of the object (PointAD, section 3.2)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anomalib_pose.compare.maps import gaussian_blur, upsample
from anomalib_pose.models.point_ad.types import ViewScores
from anomalib_pose.render.back_projection import back_project, fill_visibility, smooth_over_neighbors
from anomalib_pose.render.point_normals import point_spacing


@dataclass(frozen=True)
class CloudGrid:
    """Where the views show a cloud's cells; the fields of a ``CloudItem`` that are needed here.

    Args:
        points: positions (s, s, 3).
        valid: cells that hold a point (s, s).
        organized: whether neighboring cells are neighbors in space.
        pixels: row and column in each view of each cell's point (v, s * s, 2); views have s x s pixels.
        visible: whether the view shows the cell's point (v, s * s).
    """

    points: Tensor
    valid: Tensor
    organized: bool
    pixels: Tensor
    visible: Tensor


@dataclass(frozen=True)
class ObjectScores:
    """How defective an object is, and where.

    Args:
        point_map: on the grid (s, s), smoothed; together with the photograph's where there is one.
        score: of the object, a scalar, in [0, 1] if the views' are.
    """

    point_map: Tensor
    score: Tensor


def point_map(maps: Tensor, grid: CloudGrid) -> Tensor:
    """Mean over the views that show a cell's point, not smoothed; 0 in cells without a point.

    Points that no view shows take the visibility of their neighbor in the order of the cells, see
    ``fill_visibility``.

    Args:
        maps: how defective each patch of each view is (v, p, p).
        grid: where the views show the cells.

    Returns:
        Map (s, s).
    """
    size = grid.valid.shape[-1]
    valid = grid.valid.flatten().cpu()
    visible = fill_visibility(grid.visible.cpu() & valid, valid).to(maps.device)
    enlarged = upsample(maps, (size, size))
    return back_project(enlarged, grid.pixels, visible).reshape(grid.valid.shape)


def smooth(values: Tensor, grid: CloudGrid, sigma: float) -> Tensor:
    """Gaussian mean over cells, or over neighbors in space where the order of the cells means nothing.

    The published program smooths over the cells in both cases.

    Args:
        values: on the grid (s, s).
        grid: of the cloud.
        sigma: width in cells; in space, in mean distances of neighboring points. 0 for none.
    """
    if grid.organized or sigma <= 0:
        return gaussian_blur(values[None], sigma)[0]
    points = grid.points[grid.valid].cpu()
    out = torch.zeros_like(values)
    width = sigma * point_spacing(points)
    if width > 0:
        out[grid.valid] = smooth_over_neighbors(points, values[grid.valid].cpu(), width).to(out)
    return out


def peak(values: Tensor, valid: Tensor, fraction: float) -> Tensor:
    """What the whole is judged by: the largest value, or the mean of the largest.

    Args:
        values: on the grid (s, s).
        valid: cells that hold a point (s, s).
        fraction: share of the number of points that are averaged, in [0, 1]; 0 for the largest alone.
    """
    count = max(1, math.ceil(fraction * int(valid.sum())))
    return values.flatten().topk(count).values.mean()


def object_scores(scores: ViewScores, grid: CloudGrid, sigma: float = 4.0, top_fraction: float = 0.0) -> ObjectScores:
    r"""Scores of points and object from those of the views.

    Without a photograph the object's score is :math:`\max(m)/2 + \bar P_v/2`, with the smoothed map :math:`m` and the
    mean score of the views. With one, maps of cloud and photograph are each smoothed, averaged, and smoothed again, and
    the score is :math:`(\max(m) + (P_{rgb} + \bar P_v)/2)/2`: half of the published one, so that both have one range.

    Args:
        scores: of the views, and of the photograph if it is to count.
        grid: where the views show the cells.
        sigma: width of the smoothing; see ``smooth``.
        top_fraction: see ``peak``.
    """
    found = smooth(point_map(scores.maps, grid), grid, sigma)
    whole = scores.scores.mean()
    if scores.photograph_map is not None and scores.photograph_score is not None:
        size = grid.valid.shape[-1]
        photograph = upsample(scores.photograph_map[None], (size, size))[0]
        found = smooth((found + smooth(photograph, grid, sigma)) / 2, grid, sigma)
        whole = (whole + scores.photograph_score) / 2
    return ObjectScores(found, (peak(found, grid.valid, top_fraction) + whole) / 2)
