# SPDX-License-Identifier: Apache-2.0
"""Choosing a few points that are spread over many."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def farthest_point_sampling(points: Shaped[Tensor, "n d"], count: int, start: int = 0) -> Int[Tensor, " count"]:
    """Indices of points of which each is as far as possible from those before it; the first of equals is taken.

    Args:
        points: n points in any number of dimensions; compared in their own precision, whole numbers exactly.
        count: how many to choose.
        start: index of the first one.

    Raises:
        ValueError: if there are not as many points, or ``start`` names none.
    """
    if not 1 <= count <= len(points) or not 0 <= start < len(points):
        msg = (
            f"Of {len(points)} points, 1 to {len(points)} can be chosen, beginning with one of them; "
            f"got count {count}, start {start}."
        )
        raise ValueError(msg)
    # By products, not differences: no copy of all points in each step.
    points = points if points.is_floating_point() else points.double()
    # Near the origin products lose little; whole numbers stay whole.
    points = points - points.mean(0).round()
    norms = points.square().sum(1)
    chosen = torch.empty(count, dtype=torch.long)
    squared = torch.full_like(norms, torch.inf)
    latest = start
    for i in range(count):
        chosen[i] = latest
        squared = torch.minimum(squared, norms + norms[latest] - 2 * (points @ points[latest]))
        # a chosen point is not chosen again where others lie on it
        squared[latest] = -1
        latest = int(squared.argmax())
    return chosen
