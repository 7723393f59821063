# SPDX-License-Identifier: Apache-2.0
"""Foreground, affinity and the keys that every query cell attends to; none of it is learned."""

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.models.looking3d.encoder import CELL

_GRAY = (0.2989, 0.587, 0.114)
_BRIGHT = 0.8
_TIE = 1e-30


def foreground_weights(images: Tensor) -> Tensor:
    """How much of each cell is object, (B, g, g), in quarters: whatever is darker than a white background.

    Dark pixels are dilated by two and resized to the grid; the resize reads the four pixels around a cell's center.

    Args:
        images: RGB (B, 3, 8 g, 8 g) in [-1, 1].
    """
    gray = (images.float() * images.new_tensor(_GRAY, dtype=torch.float32)[:, None, None]).sum(1, keepdim=True)
    grown = functional.max_pool2d((gray < _BRIGHT).float(), 5, stride=1, padding=2)[:, 0]
    first, second = CELL // 2 - 1, CELL // 2
    rows = grown[:, first::CELL] + grown[:, second::CELL]
    return (rows[..., first::CELL] + rows[..., second::CELL]) / 4


def foreground_cells(weights: Tensor, count: int) -> Tensor:
    """Numbers (B, n) of the cells with most foreground, in their order; of equal ones the first.

    Args:
        weights: foreground of the query (B, g, g), in quarters.
        count: number of cells, n.
    """
    flat = weights.flatten(1)
    order = torch.arange(flat.shape[1], device=flat.device) / (8 * flat.shape[1])
    return (flat - order).topk(count, dim=1).indices.sort(dim=1).values


@torch.no_grad()
def affinity(query: Tensor, reference: Tensor) -> Tensor:
    """Products (B, g * g, M) of the descriptors of query cells and reference cells.

    Computed in single precision: half precision would change which keys are among the best.

    Args:
        query: descriptors times foreground weights (B, g * g, 256).
        reference: descriptors times foreground weights (B or 1, M, 256).
    """
    with torch.autocast(query.device.type, enabled=False):
        return query.float() @ reference.float().transpose(1, 2)


@torch.no_grad()
def top_keys(affinities: Tensor, count: int) -> Tensor:
    """Numbers (B, g * g, k) of the reference cells most like each query cell (section 4.3).

    Background has no affinity to anything: all its products are exactly 0. Among zeros the key of the lower number goes
    first, on every device and in every runtime, so a background cell attends to keys 0 to k - 1. Another rule would
    change what published weights say a little, as their authors' devices had no rule.

    Args:
        affinities: of query and reference cells (B, g * g, M).
        count: keys a query cell, k; all of them where there are no more.
    """
    keys = affinities.shape[-1]
    # Far below the last digit of any affinity but 0: it orders the zeros and changes nothing else.
    order = torch.arange(keys, device=affinities.device, dtype=torch.float32) * -_TIE
    return (affinities + order).topk(min(count, keys), dim=-1, sorted=False).indices


def match_residual(affinities: Tensor, weights: Tensor) -> Tensor:
    """How little each query cell resembles any cell of the reference, (B, g, g), in [0, 1]; background has none.

    It is 1 less the largest cosine, by the cell's foreground weight: the affinities hold that weight already.

    Args:
        affinities: of query and reference cells (B, g * g, M).
        weights: foreground of the query (B, g, g).
    """
    return (weights - affinities.amax(-1).view_as(weights)).clamp(0, 1)
