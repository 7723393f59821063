# SPDX-License-Identifier: Apache-2.0
"""From maps of views back to the points that the views show (PointAD, section 3.2)."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from anomalib_pose.render.point_kernels import find_lenders


def borrow_visibility(visible: Bool[Tensor, "v n"], valid: Bool[Tensor, " n"]) -> Bool[Tensor, "v n"]:
    """Visibility in which points that no view shows have the flags of the nearest point that some view shows.

    Nearest in the order of the indices: points are taken one after the other; the next seen point lends its flags,
    or, where there is none further on, the first one from the start; the previous one does if it is strictly nearer.
    Points that have borrowed count as seen from then on. Pixels are not borrowed: a point still reads its own.

    Args:
        visible: whether each view shows the point.
        valid: cells that hold a point; the others stay unseen.

    Returns:
        Flags; all False where a point is not valid, and everywhere if no view shows any point.
    """
    index = valid.nonzero()[:, 0]
    flags = visible[:, index]
    lender = np.full(len(index), -1, np.int64)
    find_lenders(index.numpy(), flags.any(0).numpy(), lender)
    out = torch.zeros_like(visible)
    if len(lender) and lender[0] >= 0:
        out[:, index] = flags[:, torch.from_numpy(lender)]
    return out


def back_project(
    maps: Float[Tensor, "v h w *channels"], pixels: Int[Tensor, "v n 2"], visible: Bool[Tensor, "v n"]
) -> Float[Tensor, " n *channels"]:
    """Mean over the views that show a point of the map's value at its pixel; 0 for points that no view shows.

    Args:
        maps: one map for each view; gradients flow to them.
        pixels: row and column of each point.
        visible: whether the view counts for the point.
    """
    row, column = pixels.long().unbind(-1)
    view = torch.arange(len(maps), device=maps.device)[:, None]
    extra = (1,) * (maps.ndim - 3)
    weights = visible.to(maps.dtype)
    total = (maps[view, row, column] * weights.reshape(*weights.shape, *extra)).sum(0)
    return total / weights.sum(0).clamp_min(1).reshape(-1, *extra)


def back_projection_matrix(
    pixels: Int[Tensor, "v n 2"], visible: Bool[Tensor, "v n"], size: int, patches: int
) -> Float[Tensor, "n m"]:
    """Bilinear enlargement of patch maps and ``back_project`` as one sparse matrix.

    ``matrix @ values.reshape(v * patches * patches, c)`` is what ``back_project`` makes of the patch maps, enlarged to
    the views' size (without aligning corners). A row has four weights for each view that shows the point.

    Args:
        pixels: row and column of each point.
        visible: whether the view counts for the point.
        size: width and height of the views, pixels.
        patches: patches along a side of a view.

    Returns:
        Sparse matrix (COO, coalesced) with ``m = v * patches * patches`` columns.

    Raises:
        ValueError: if a size is below 1, or a visible point lies outside the views.
    """
    view, point = visible.nonzero().unbind(-1)
    position = pixels[view, point].long()
    if size < 1 or patches < 1 or (len(position) and not 0 <= int(position.min()) <= int(position.max()) < size):
        msg = f"Pixels of visible points should be in 0..{size - 1}, and size and patches ({patches}) 1 or more."
        raise ValueError(msg)
    low, high, share = _enlargement(position, size, patches)
    weight = 1 / visible.sum(0)[point].to(torch.float32)
    columns, weights = [], []
    for r in (0, 1):
        for c in (0, 1):
            row, column = (high if r else low)[:, 0], (high if c else low)[:, 1]
            row_share = share[:, 0] if r else 1 - share[:, 0]
            column_share = share[:, 1] if c else 1 - share[:, 1]
            columns.append((view * patches + row) * patches + column)
            weights.append(weight * row_share * column_share)
    indices = torch.stack([point.repeat(4), torch.cat(columns)])
    shape = (visible.shape[1], len(visible) * patches**2)
    return torch.sparse_coo_tensor(indices, torch.cat(weights), shape, check_invariants=False).coalesce()


def _enlargement(position: Tensor, size: int, patches: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patches before and after each position (n, 2), and the share of the second."""
    source = ((position + 0.5) * (patches / size) - 0.5).clamp(0, patches - 1)
    low = source.floor().long()
    return low, (low + 1).clamp_max(patches - 1), (source - low).float()


def smooth_over_neighbors(
    points: Float[Tensor, "n 3"], values: Float[Tensor, " n"], sigma: float, neighbors: int = 64
) -> Float[Tensor, " n"]:
    """Gaussian mean of values over the nearest points in space, for clouds whose order means nothing.

    Args:
        points: positions.
        values: one value for each point.
        sigma: width of the Gaussian, in units of the points.
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
