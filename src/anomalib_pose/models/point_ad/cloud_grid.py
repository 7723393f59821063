# SPDX-License-Identifier: Apache-2.0
"""The grid of a cloud's points, and the pixels at which the rendered views show them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CloudGrid:
    """Points of one cloud on a grid of s x s cells, and their pixels in v views of s x s pixels.

    The fields are those of ``CloudItem`` with the same names.

    Args:
        points: positions (s, s, 3), in the unit of the recording.
        valid: cells that hold a point (s, s).
        organized: whether neighboring cells are neighbors in space.
        pixels: row and column of each cell's point in each view (v, s * s, 2).
        visible: whether the view shows the cell's point (v, s * s).
    """

    points: Tensor
    valid: Tensor
    organized: bool
    pixels: Tensor
    visible: Tensor


def grid_of(batch: Any, index: int) -> CloudGrid:
    """Take the grid of one cloud out of a batch.

    Args:
        batch: a ``CloudBatch``.
        index: index of the cloud.
    """
    return CloudGrid(
        batch.points[index], batch.valid[index], bool(batch.organized[index]), batch.pixels[index], batch.visible[index]
    )


def check_clouds(batch: Any) -> None:
    """Refuse a batch without rendered clouds.

    Args:
        batch: batch of any data module.

    Raises:
        ValueError: if the batch has no views, or no visibility of points in them.
    """
    if getattr(batch, "views", None) is None or getattr(batch, "visible", None) is None:
        msg = (
            "PointAD scores the rendered views of clouds, but this batch has none. Use MVTec3DRendered, "
            "EyecandiesRendered or Real3DADRendered as data."
        )
        raise ValueError(msg)


def pixels_with_points(pixels: Tensor, visible: Tensor, size: int) -> Tensor:
    """Mark the pixels that show a point (v, size, size).

    Args:
        pixels: row and column of each point (v, n, 2).
        visible: whether the view shows the point (v, n).
        size: width and height of the views in pixels.
    """
    occupied = torch.zeros(len(visible), size * size, dtype=torch.bool, device=visible.device)
    view, point = visible.nonzero().unbind(-1)
    row, column = pixels[view, point].long().unbind(-1)
    occupied[view, row * size + column] = True
    return occupied.reshape(-1, size, size)
