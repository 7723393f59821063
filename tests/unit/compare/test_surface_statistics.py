# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from anomalib_pose.compare import SurfaceStatistics
from anomalib_pose.compare.surface_statistics import PRIOR_PIXELS

CENTER, RADIUS, CELLS = torch.tensor([0.3, -0.2, 1.0]), 0.5, 8


def random_views(count: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    views = []
    for _ in range(count):
        points = CENTER + RADIUS * (2 * torch.rand(6, 5, 3, generator=generator) - 1)
        alpha = (torch.rand(6, 5, generator=generator) > 0.3).float()
        views.append((5 * torch.rand(6, 5, generator=generator), points, alpha))
    return views


def fitted() -> SurfaceStatistics:
    surface = SurfaceStatistics(CELLS)
    surface.fit(random_views(3), CENTER, RADIUS)
    return surface


def test_maps_do_not_change_before_fit() -> None:
    anomaly_map, points, alpha = (part[None] for part in random_views(1)[0])
    torch.testing.assert_close(SurfaceStatistics()(anomaly_map, points, alpha), anomaly_map, rtol=0, atol=0)


def test_cells_hold_mean_squares_relative_to_the_median() -> None:
    surface = fitted()
    corner, cell = surface.corner.numpy(), float(surface.cell)
    assert np.allclose(corner, CENTER.numpy() - CELLS / 2 * cell)
    sums, weights = np.zeros((CELLS,) * 3), np.zeros((CELLS,) * 3)
    for anomaly_map, points, alpha in random_views(3):
        for row, column in itertools.product(range(6), range(5)):
            if alpha[row, column] > 0.5:
                place = (points[row, column].numpy() - corner) / cell - 0.5
                for index in itertools.product(range(CELLS), repeat=3):
                    weight = np.prod(np.clip(1 - np.abs(place - index), 0, None))
                    sums[index] += weight * float(anomaly_map[row, column]) ** 2
                    weights[index] += weight
    average = sums.sum() / weights.sum()
    expected = (sums + PRIOR_PIXELS * average) / (weights + PRIOR_PIXELS)
    order = expected.ravel().argsort()
    above = weights.ravel()[order].cumsum() >= weights.sum() / 2
    expected /= expected.ravel()[order][above.argmax()]
    np.testing.assert_allclose(surface.excess_square.view(CELLS, CELLS, CELLS), expected, rtol=1e-4)


def test_maps_are_divided_by_the_interpolated_excess() -> None:
    surface = fitted()
    anomaly_map, points, alpha = (part[None] for part in random_views(1)[0])
    axes = [(np.arange(CELLS) + 0.5) * float(surface.cell) + float(corner) for corner in surface.corner]
    look_up = RegularGridInterpolator(axes, surface.excess_square.view(CELLS, CELLS, CELLS).numpy())
    excess = torch.from_numpy(np.sqrt(look_up(points.numpy()))).clamp(min=1)
    assert 0.1 < (excess > 1).float().mean() < 0.9
    expected = anomaly_map / torch.where(alpha > 0, excess, 1)
    torch.testing.assert_close(surface(anomaly_map, points, alpha), expected.float(), rtol=1e-4, atol=1e-5)


def test_half_the_strength_divides_by_the_root() -> None:
    whole, half = fitted(), SurfaceStatistics(CELLS, 0.5)
    half.load_state_dict(whole.state_dict())
    anomaly_map, points, alpha = (part[None] for part in random_views(1)[0])
    quotient = anomaly_map / whole(anomaly_map, points, alpha)
    assert quotient.max() > 1.05
    torch.testing.assert_close(half(anomaly_map, points, alpha), anomaly_map / quotient.sqrt())
    with pytest.raises(ValueError, match="strength should not be negative, got -1"):
        SurfaceStatistics(strength=-1.0)


def test_fit_needs_views_that_show_the_object() -> None:
    anomaly_map, points, _ = random_views(1)[0]
    with pytest.raises(ValueError, match="normal views"):
        SurfaceStatistics(CELLS).fit([(anomaly_map, points, torch.zeros_like(anomaly_map))], CENTER, RADIUS)
