# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from anomalib_pose.geometry import farthest_point_sampling


def loop_sampling(points: list[list[int]], count: int, start: int) -> list[int]:
    selected = [start]
    while len(selected) < count:
        best, best_distance = -1, -1
        for i, point in enumerate(points):
            if i in selected:
                continue
            distance = min(sum((a - b) ** 2 for a, b in zip(point, points[j], strict=True)) for j in selected)
            if distance > best_distance:
                best, best_distance = i, distance
        selected.append(best)
    return selected


@pytest.mark.parametrize(("seed", "largest", "start"), [(0, 256, 0), (1, 256, 3), (2, 6, 0)])
def test_each_point_is_the_farthest_from_the_points_before(seed: int, largest: int, start: int) -> None:
    """With coordinates below 6, many points and many distances are equal."""
    points = np.random.default_rng(seed).integers(0, largest, (60, 2))
    selected = farthest_point_sampling(torch.from_numpy(points), 32, start)
    assert selected.tolist() == loop_sampling(points.tolist(), 32, start)


def test_at_most_all_points_can_be_selected() -> None:
    points = torch.zeros(4, 2)
    assert farthest_point_sampling(points, 4).tolist() == [0, 1, 2, 3]
    for count, start in ((5, 0), (0, 0), (2, 4), (2, -1)):
        with pytest.raises(ValueError, match="Of 4 points"):
            farthest_point_sampling(points, count, start)
