# SPDX-License-Identifier: Apache-2.0
"""Back-projection against loops and against the arrays of PointAD's own code."""

import numpy as np
import pytest
import torch

from anomalib_pose.render.back_projection import (
    back_project,
    fill_visibility,
    smooth_over_neighbors,
)

VIEWS, SIZE, COUNT = 3, 16, 40


@pytest.fixture(scope="module")
def golden(shared):
    path = shared / "reference" / "pointad_golden_backprojection.npz"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, SIZE, (VIEWS, COUNT, 2), generator=g, dtype=torch.int16)
    return pixels, torch.rand(VIEWS, COUNT, generator=g) > 0.6


def fill_by_loop(visible: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Apply the rule of ``fill_visibility`` in a loop over flat indices."""
    flags, index = visible.copy() & valid, np.flatnonzero(valid)
    has_flags = flags.any(0)
    for i in index:
        if has_flags[i]:
            continue
        ahead = [j for j in index if j > i and has_flags[j]]
        start = [j for j in index if has_flags[j]]
        if not start:
            break
        j, distance = (ahead[0], ahead[0] - i) if ahead else (start[0], index[-1] - i + start[0] - index[0])
        behind = [k for k in index if k < i and has_flags[k]]
        if behind and i - behind[-1] < distance:
            j = behind[-1]
        flags[:, i] = flags[:, j]
        has_flags[i] = True
    return flags


@pytest.mark.parametrize("seed", range(12))
def test_filled_visibility_equals_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    valid = rng.random(COUNT) < rng.choice([0.4, 0.9])
    visible = (rng.random((VIEWS, COUNT)) < rng.choice([0.05, 0.2])) & valid
    result = fill_visibility(torch.from_numpy(visible), torch.from_numpy(valid))
    np.testing.assert_array_equal(result.numpy(), fill_by_loop(visible, valid))


def test_visibility_stays_false_without_a_visible_or_valid_point() -> None:
    invisible = torch.zeros(VIEWS, COUNT, dtype=torch.bool)
    assert not fill_visibility(invisible, torch.ones(COUNT, dtype=torch.bool)).any()
    assert not fill_visibility(~invisible, torch.zeros(COUNT, dtype=torch.bool)).any()


def test_back_projection_is_the_mean_over_visible_views() -> None:
    pixels, visible = scene()
    maps = torch.rand(VIEWS, SIZE, SIZE, 2, generator=torch.Generator().manual_seed(1))
    result = back_project(maps, pixels, visible)
    for point in range(COUNT):
        values = [maps[v][tuple(pixels[v, point].tolist())] for v in range(VIEWS) if visible[v, point]]
        expected = torch.stack(values).mean(0) if values else torch.zeros(2)
        torch.testing.assert_close(result[point], expected)
    torch.testing.assert_close(back_project(maps[..., 0], pixels, visible), result[:, 0])


def test_gradients_reach_the_maps() -> None:
    pixels, visible = scene()
    maps = torch.rand(VIEWS, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda m: back_project(m, pixels, visible), maps.requires_grad_())


def test_results_equal_the_arrays_of_the_reference_code(golden) -> None:
    for case in range(3):
        valid = golden["valid"][case]
        before, after = golden["cor_before"][case], golden["cor_after"][case]
        pixels = before[..., [1, 0]]
        visible = fill_visibility(before[..., 2] > 0, valid)
        assert torch.equal(visible[:, valid], after[:, valid, 2] > 0)
        abnormal = golden["maps_abnormal"][3 * case : 3 * case + 3]
        result = back_project(torch.stack([1 - abnormal, abnormal], -1), pixels, visible & valid)
        torch.testing.assert_close(result.reshape(6, 6, 2), golden["points"][case], atol=1e-6, rtol=0)


def test_smoothing_is_the_gaussian_mean_of_neighbors() -> None:
    g = torch.Generator().manual_seed(4)
    points, values = torch.rand(30, 3, generator=g), torch.rand(30, generator=g)
    result = smooth_over_neighbors(points, values, 0.2, 7)
    for i in range(30):
        distance = (points - points[i]).norm(dim=1)
        nearest = distance.argsort()[:7]
        weights = torch.exp(-0.5 * (distance[nearest] / 0.2) ** 2)
        assert result[i].item() == pytest.approx(((weights * values[nearest]).sum() / weights.sum()).item(), abs=1e-5)
    torch.testing.assert_close(smooth_over_neighbors(points, values, 0.2, 1), values)
    assert len(smooth_over_neighbors(points[:0], values[:0], 0.2)) == 0


def test_smoothing_refuses_sigma_0_and_no_neighbors() -> None:
    with pytest.raises(ValueError, match="sigma"):
        smooth_over_neighbors(torch.rand(3, 3), torch.rand(3), 0.0)
    with pytest.raises(ValueError, match="neighbors"):
        smooth_over_neighbors(torch.rand(3, 3), torch.rand(3), 1.0, 0)
