# SPDX-License-Identifier: Apache-2.0
"""Scores of points and of the object from scores of views (PointAD, section 3.2)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anomalib_pose.compare.maps import gaussian_blur_mirrored, upsample
from anomalib_pose.models.point_ad.cloud_grid import CloudGrid
from anomalib_pose.models.point_ad.image_scores import ImageScores
from anomalib_pose.render.back_projection import back_project, fill_visibility, smooth_over_neighbors
from anomalib_pose.render.point_normals import point_spacing


@dataclass(frozen=True)
class ObjectScores:
    """Scores of one object.

    Args:
        point_map: smoothed scores of the grid's cells (s, s), averaged with the photograph's map where there is one.
        score: score of the object, a scalar; in [0, 1] if the scores of the views are.
    """

    point_map: Tensor
    score: Tensor


def point_map(maps: Tensor, grid: CloudGrid) -> Tensor:
    """Average the scores of the views that show a cell's point; not smoothed, 0 in cells without a point.

    Points that no view shows take the visibility of their neighbor in the order of the cells, see
    ``fill_visibility``.

    Args:
        maps: scores of the views' patches (v, p, p).
        grid: grid of the cloud.

    Returns:
        Scores of the cells (s, s).
    """
    size = grid.valid.shape[-1]
    valid = grid.valid.flatten().cpu()
    visible = fill_visibility(grid.visible.cpu() & valid, valid).to(maps.device)
    return back_project(upsample(maps, (size, size)), grid.pixels, visible).reshape(grid.valid.shape)


def smooth(values: Tensor, grid: CloudGrid, sigma: float) -> Tensor:
    """Smooth scores by a Gaussian over the grid, or over neighbors in space if the cells have no order.

    The published program smooths over the grid in both cases.

    Args:
        values: scores of the cells (s, s).
        grid: grid of the cloud.
        sigma: standard deviation in cells; in space, in mean distances of neighboring points. 0 for no smoothing.
    """
    if grid.organized or sigma <= 0:
        return gaussian_blur_mirrored(values[None], sigma)[0]
    points = grid.points[grid.valid].cpu()
    smoothed = torch.zeros_like(values)
    width = sigma * point_spacing(points)
    if width > 0:
        smoothed[grid.valid] = smooth_over_neighbors(points, values[grid.valid].cpu(), width).to(smoothed)
    return smoothed


def peak(values: Tensor, valid: Tensor, fraction: float) -> Tensor:
    """Return the largest score, or the mean of the largest scores; a scalar.

    Args:
        values: scores of the cells (s, s).
        valid: cells that hold a point (s, s).
        fraction: number of averaged scores as a fraction of the number of points, in [0, 1]; 0 for the largest alone.
    """
    count = max(1, math.ceil(fraction * int(valid.sum())))
    return values.flatten().topk(count).values.mean()


def object_scores(scores: ImageScores, grid: CloudGrid, sigma: float = 4.0, top_fraction: float = 0.0) -> ObjectScores:
    r"""Compute the scores of points and object from those of views and photograph.

    Without a photograph, the score of the object is :math:`\max(m)/2 + \bar P_v/2`, with the smoothed map :math:`m` and
    the mean score :math:`\bar P_v` of the views. With a photograph, the maps of cloud and photograph are smoothed,
    averaged, and smoothed again. The score is then :math:`(\max(m) + (P_{rgb} + \bar P_v)/2)/2`. This is half of the
    published score, so that both cases have one range.

    Args:
        scores: scores of the views, and of the photograph if it is to contribute.
        grid: grid of the cloud.
        sigma: see ``smooth``.
        top_fraction: see ``peak``.
    """
    values = smooth(point_map(scores.view_maps, grid), grid, sigma)
    image_score = scores.view_scores.mean()
    if scores.photograph_map is not None and scores.photograph_score is not None:
        size = grid.valid.shape[-1]
        photograph = upsample(scores.photograph_map[None], (size, size))[0]
        values = smooth((values + smooth(photograph, grid, sigma)) / 2, grid, sigma)
        image_score = (image_score + scores.photograph_score) / 2
    return ObjectScores(values, (peak(values, grid.valid, top_fraction) + image_score) / 2)
