# SPDX-License-Identifier: Apache-2.0
"""Scores of points and objects agree with stored outputs of PointAD's program, and with loops."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anomalib_pose.models.point_ad.aggregation import object_scores, peak, point_map, smooth
from anomalib_pose.models.point_ad.cloud_grid import CloudGrid
from anomalib_pose.models.point_ad.image_scores import ImageScores

SIZE = 64


@pytest.fixture(scope="module")
def golden(shared):
    arrays = {}
    for name in ("score", "losses", "maps"):
        path = shared / "reference" / f"pointad_golden_{name}.npz"
        if not path.is_file():
            pytest.skip(f"there is no {path}")
        with np.load(path) as stored:
            arrays[name] = {key: torch.from_numpy(stored[key]) for key in stored}
    return arrays


def golden_grid(arrays, index):
    cor = arrays["losses"]["cor"][index]
    valid = arrays["losses"]["valid"][index].reshape(SIZE, SIZE)
    return CloudGrid(torch.zeros(SIZE, SIZE, 3), valid, True, cor[..., [1, 0]], cor[..., 2] > 0)


def view_scores(arrays, index):
    """Read the stored scores of an object's three views; the first patch is the class token."""
    probabilities = arrays["maps"]["patch_prob"][3 * index : 3 * index + 3, 1:, 1].reshape(3, 8, 8)
    return ImageScores(probabilities, arrays["maps"]["view_prob"][3 * index : 3 * index + 3, 1])


@pytest.mark.parametrize("index", [0, 1])
def test_maps_and_scores_agree_with_the_reference(golden, index):
    expected = {name: values[index] for name, values in golden["score"].items()}
    grid, scores = golden_grid(golden, index), view_scores(golden, index)
    torch.testing.assert_close(point_map(scores.view_maps, grid), expected["point_map_unsmoothed"], atol=1e-5, rtol=0)
    result = object_scores(scores, grid)
    torch.testing.assert_close(result.point_map, expected["point_map"], atol=1e-5, rtol=0)
    torch.testing.assert_close(result.score, expected["point_score"], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.view_scores.mean(), expected["mean_view_prob"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", [0, 1])
def test_fusion_agrees_with_the_reference(golden, index):
    """The stored arrays have the photograph's smoothed map and its score, but not its patches."""
    expected = {name: values[index] for name, values in golden["score"].items()}
    grid = golden_grid(golden, index)
    fused = smooth((expected["point_map"] + expected["rgb_map"]) / 2, grid, 4.0)
    torch.testing.assert_close(fused, expected["fused_map"], atol=1e-5, rtol=0)
    photograph_score = expected["rgb_score"] - expected["rgb_map"].max()
    published = fused.max() + (photograph_score + expected["mean_view_prob"]) / 2
    torch.testing.assert_close(published, expected["fused_score"], atol=1e-5, rtol=0)


def random_grid(seed=0, size=12, views=3, organized=True):
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(size, size, generator=g) > 0.3
    visible = (torch.rand(views, size * size, generator=g) > 0.5) & valid.flatten()
    pixels = torch.randint(0, size, (views, size * size, 2), generator=g, dtype=torch.int16)
    points = torch.rand(size, size, 3, generator=g) * valid[..., None]
    return CloudGrid(points, valid, organized, pixels, visible)


def random_scores(seed=1, views=3, patches=4, photograph=True):
    g = torch.Generator().manual_seed(seed)
    maps, scores = torch.rand(views, patches, patches, generator=g), torch.rand(views, generator=g)
    if not photograph:
        return ImageScores(maps, scores)
    return ImageScores(maps, scores, torch.rand(patches, patches, generator=g), torch.rand((), generator=g))


def enlarged(patches, size):
    return torch.nn.functional.interpolate(patches[None, None], (size, size), mode="bilinear")[0, 0]


def test_fusion_smooths_each_map_and_their_mean():
    grid, scores = random_grid(), random_scores()
    result = object_scores(scores, grid, sigma=1.5)

    def blurred(values):
        return gaussian_filter(values.numpy().astype(np.float64), 1.5)

    cloud = blurred(point_map(scores.view_maps, grid))
    photograph = blurred(enlarged(scores.photograph_map, 12))
    fused = gaussian_filter((cloud + photograph) / 2, 1.5)
    np.testing.assert_allclose(result.point_map.numpy(), fused, atol=1e-6)
    published = fused.max() + (float(scores.photograph_score) + float(scores.view_scores.mean())) / 2
    assert float(result.score) == pytest.approx(published / 2, abs=1e-6)


def test_cells_without_a_point_are_zero_before_smoothing():
    grid, scores = random_grid(), random_scores()
    values = point_map(scores.view_maps, grid)
    assert not values[~grid.valid].any()
    assert values[grid.valid].all()


def test_clouds_without_order_are_smoothed_in_space():
    """Shuffling the cells only moves the scores; smoothing over the grid would mix distant points."""
    grid = random_grid(organized=False)
    values = torch.rand(12, 12, generator=torch.Generator().manual_seed(2)) * grid.valid
    smoothed = smooth(values, grid, 2.0)
    order = torch.randperm(144, generator=torch.Generator().manual_seed(3))
    shuffled = CloudGrid(
        grid.points.reshape(144, 3)[order].reshape(12, 12, 3),
        grid.valid.flatten()[order].reshape(12, 12),
        False,
        grid.pixels,
        grid.visible,
    )
    smoothed_shuffled = smooth(values.flatten()[order].reshape(12, 12), shuffled, 2.0)
    torch.testing.assert_close(smoothed_shuffled.flatten(), smoothed.flatten()[order])
    assert not smoothed[~grid.valid].any()
    assert smoothed[grid.valid].std() < 0.9 * values[grid.valid].std()
    assert not torch.allclose(smoothed, smooth(values, random_grid(organized=True), 2.0))


def test_sigma_zero_smooths_nothing():
    values = torch.rand(12, 12)
    for organized in (True, False):
        assert torch.equal(smooth(values, random_grid(organized=organized), 0.0), values)


def test_the_peak_is_the_largest_value_or_the_mean_of_the_largest():
    values, valid = torch.arange(100.0).reshape(10, 10), torch.ones(10, 10, dtype=torch.bool)
    valid[:5] = False
    assert float(peak(values, valid, 0.0)) == 99
    assert float(peak(values, valid, 0.1)) == np.mean([95, 96, 97, 98, 99])
    assert float(peak(values, valid, 1.0)) == np.mean(np.arange(50, 100))
