# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from anomalib_pose.geometry import farthest_point_sampling


def by_loops(points: list[list[int]], count: int, start: int) -> list[int]:
    chosen = [start]
    while len(chosen) < count:
        best, best_distance = -1, -1
        for i, point in enumerate(points):
            if i in chosen:
                continue
            distance = min(sum((a - b) ** 2 for a, b in zip(point, points[j], strict=True)) for j in chosen)
            if distance > best_distance:
                best, best_distance = i, distance
        chosen.append(best)
    return chosen


@pytest.mark.parametrize(("seed", "largest", "start"), [(0, 256, 0), (1, 256, 3), (2, 6, 0)])
def test_each_point_is_the_farthest_from_those_before(seed: int, largest: int, start: int) -> None:
    """Of 6 x 6 places many points are equal, and many distances."""
    points = np.random.default_rng(seed).integers(0, largest, (60, 2))
    found = farthest_point_sampling(torch.from_numpy(points), 32, start)
    assert found.tolist() == by_loops(points.tolist(), 32, start)


def test_all_points_can_be_chosen_and_no_more() -> None:
    points = torch.zeros(4, 2)
    assert farthest_point_sampling(points, 4).tolist() == [0, 1, 2, 3]
    for count, start in ((5, 0), (0, 0), (2, 4), (2, -1)):
        with pytest.raises(ValueError, match="Of 4 points"):
            farthest_point_sampling(points, count, start)
