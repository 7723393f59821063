# SPDX-License-Identifier: Apache-2.0
"""Foreground, affinity, and the selection of keys for each query cell. Nothing here is learned."""

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.models.looking3d.encoder import CELL

_GRAY = (0.2989, 0.587, 0.114)
_BRIGHT = 0.8
"""Gray value, in [-1, 1], at or above which a pixel counts as background."""
_TIE = 1e-30
"""Step between the offsets that order equal affinities."""


def foreground_weights(images: Tensor) -> Tensor:
    """Compute the fraction of each cell that shows the object (B, g, g), in quarters.

    The object is darker than a white background; bright parts of it count as background. The mask of dark pixels is
    dilated by two pixels and resized to the grid; the resize reads the four pixels around the center of a cell.

    Args:
        images: RGB (B, 3, 8 g, 8 g) in [-1, 1].
    """
    gray = (images.float() * images.new_tensor(_GRAY, dtype=torch.float32)[:, None, None]).sum(1, keepdim=True)
    dilated = functional.max_pool2d((gray < _BRIGHT).float(), 5, stride=1, padding=2)[:, 0]
    first, second = CELL // 2 - 1, CELL // 2
    rows = dilated[:, first::CELL] + dilated[:, second::CELL]
    return (rows[..., first::CELL] + rows[..., second::CELL]) / 4


def foreground_cells(weights: Tensor, count: int) -> Tensor:
    """Select the cells with most foreground: sorted indices (B, n); of equal cells the first ones.

    Args:
        weights: foreground of the query (B, g, g), in quarters.
        count: number of cells, n.
    """
    flat = weights.flatten(1)
    order = torch.arange(flat.shape[1], device=flat.device) / (8 * flat.shape[1])
    return (flat - order).topk(count, dim=1).indices.sort(dim=1).values


@torch.no_grad()
def affinity(query: Tensor, reference: Tensor) -> Tensor:
    """Compute the dot products of query descriptors and reference descriptors (B, g * g, M).

    They are computed in single precision: half precision would change the selection of keys.

    Args:
        query: descriptors times foreground weights (B, g * g, 256).
        reference: descriptors times foreground weights (B or 1, M, 256).
    """
    with torch.autocast(query.device.type, enabled=False):
        return query.float() @ reference.float().transpose(1, 2)


@torch.no_grad()
def top_keys(affinities: Tensor, count: int) -> Tensor:
    """Select the reference cells with the largest affinity to each query cell: indices (B, g * g, k) (section 4.3).

    All affinities of background cells are exactly 0. Among zeros the lower index wins, on every device and in every
    runtime, so that a background cell attends to keys 0 to k - 1. The published program has no such rule: its ties
    depend on the device, which changes its results slightly.

    Args:
        affinities: affinities of query and reference cells (B, g * g, M).
        count: number of keys of each query cell, k; all keys if there are fewer.
    """
    keys = affinities.shape[-1]
    # far below the last digit of any affinity except 0: the offsets order the zeros and change nothing else
    order = torch.arange(keys, device=affinities.device, dtype=torch.float32) * -_TIE
    return (affinities + order).topk(min(count, keys), dim=-1, sorted=False).indices


def match_residual(affinities: Tensor, weights: Tensor) -> Tensor:
    r"""Compute the residual of each query cell (B, g, g), in [0, 1]; 0 in the background.

    .. math:: r_i = m_i \, (1 - \max_j \cos(q_i, v_j))

    with the foreground weight :math:`m_i`, which the affinities already contain.

    Args:
        affinities: affinities of query and reference cells (B, g * g, M).
        weights: foreground of the query (B, g, g).
    """
    return (weights - affinities.amax(-1).view_as(weights)).clamp(0, 1)
