# SPDX-License-Identifier: Apache-2.0
"""Farthest point sampling."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def farthest_point_sampling(points: Shaped[Tensor, "n d"], count: int, start: int = 0) -> Int[Tensor, " count"]:
    """Select points such that each is as far as possible from the points selected before; return their indices.

    Of several points at the same distance, the first is selected.

    Args:
        points: n points in any number of dimensions; distances have the points' precision and are exact for integers.
        count: number of points to select.
        start: index of the first selected point.

    Raises:
        ValueError: if ``count`` is not in 1..n, or ``start`` is not the index of a point.
    """
    if not 1 <= count <= len(points) or not 0 <= start < len(points):
        msg = (
            f"Of {len(points)} points, count should be 1 to {len(points)} and start 0 to {len(points) - 1}, "
            f"got count {count}, start {start}."
        )
        raise ValueError(msg)
    # Distances from inner products need no copy of all points in each step, unlike differences.
    points = points if points.is_floating_point() else points.double()
    # Inner products near the origin lose little precision. The rounded mean keeps integers exact.
    points = points - points.mean(0).round()
    norms = points.square().sum(1)
    selected = torch.empty(count, dtype=torch.long)
    squared_distances = torch.full_like(norms, torch.inf)
    latest = start
    for i in range(count):
        selected[i] = latest
        from_latest = norms + norms[latest] - 2 * (points @ points[latest])
        squared_distances = torch.minimum(squared_distances, from_latest)
        # A selected point is not selected again if other points coincide with it.
        squared_distances[latest] = -1
        latest = int(squared_distances.argmax())
    return selected
