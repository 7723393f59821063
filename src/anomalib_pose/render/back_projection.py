# SPDX-License-Identifier: Apache-2.0
"""Back-projection of view maps to the points of a cloud (PointAD, section 3.2)."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from anomalib_pose.render.point_kernels import find_donors


def fill_visibility(visible: Bool[Tensor, "v n"], valid: Bool[Tensor, " n"]) -> Bool[Tensor, "v n"]:
    """Copy the visibility flags of the nearest visible point to points that are invisible in all views.

    "Nearest" refers to the order of the indices. Points are processed in ascending order. A point takes the flags of
    the next visible point, or of the first visible point of the cloud if none follows. If the previous point is
    strictly nearer, the point takes the flags of the previous point instead. A point counts as visible once it has
    flags. Pixels are not copied: a point still reads its own pixel.

    Args:
        visible: visibility of each of N points in each of V views.
        valid: whether a cell holds a point; cells without a point stay invisible.

    Returns:
        Flags (V, N); all False where a point is not valid, and everywhere if all points are invisible in all views.
    """
    index = valid.nonzero()[:, 0]
    flags = visible[:, index]
    donor = np.full(len(index), -1, np.int64)
    find_donors(index.numpy(), flags.any(0).numpy(), donor)
    out = torch.zeros_like(visible)
    if len(donor) and donor[0] >= 0:
        out[:, index] = flags[:, torch.from_numpy(donor)]
    return out


def back_project(
    maps: Float[Tensor, "v h w *channels"], pixels: Int[Tensor, "v n 2"], visible: Bool[Tensor, "v n"]
) -> Float[Tensor, " n *channels"]:
    """Average each point's map values over the views where it is visible; 0 for points that are invisible in all views.

    Args:
        maps: one map for each view; differentiable.
        pixels: row and column of each point in each view.
        visible: whether a view counts for a point.
    """
    row, column = pixels.long().unbind(-1)
    view = torch.arange(len(maps), device=maps.device)[:, None]
    channel_axes = (1,) * (maps.ndim - 3)
    weights = visible.to(maps.dtype)
    total = (maps[view, row, column] * weights.reshape(*weights.shape, *channel_axes)).sum(0)
    return total / weights.sum(0).clamp_min(1).reshape(-1, *channel_axes)


def smooth_over_neighbors(
    points: Float[Tensor, "n 3"], values: Float[Tensor, " n"], sigma: float, neighbors: int = 64
) -> Float[Tensor, " n"]:
    """Smooth values with a Gaussian over the nearest points in space, for clouds without a meaningful order.

    Args:
        points: positions of the points.
        values: one value for each point.
        sigma: standard deviation of the Gaussian, in units of the points.
        neighbors: number of nearest points that count, the point itself included.

    Raises:
        ValueError: if ``sigma`` is not above 0, or ``neighbors`` is below 1.
    """
    if not sigma > 0 or neighbors < 1:
        msg = f"sigma should be above 0 and neighbors 1 or more, got {sigma} and {neighbors}."
        raise ValueError(msg)
    count = min(neighbors, len(points))
    if not count:
        return values.clone()
    xyz = points.double().numpy()
    distance, index = cKDTree(xyz).query(xyz, np.arange(1, count + 1))
    weights = torch.from_numpy(np.exp(-0.5 * (distance / sigma) ** 2)).to(values.dtype)
    return (weights * values[torch.from_numpy(index)]).sum(1) / weights.sum(1)
