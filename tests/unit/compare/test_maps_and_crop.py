# SPDX-License-Identifier: Apache-2.0
"""Tolerant distances against loops, windows against slices."""

import numpy as np
import pytest
import torch

from anomalib_pose.compare.crop import ObjectCrop
from anomalib_pose.compare.maps import shifted, tolerance_shifts, tolerant_distance, top_mean


def _random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tolerant_distance_equals_a_loop_over_shifts():
    query, reference = _random(1, 3, 7, 9), _random(1, 3, 7, 9, seed=1)
    result = tolerant_distance(query, reference, tolerance_shifts(2.0))[0].numpy()
    q, r = query[0].numpy(), reference[0].numpy()
    expected = np.zeros((7, 9))
    for y in range(7):
        for x in range(9):
            near = [(min(max(y + dy, 0), 6), min(max(x + dx, 0), 8)) for dy in range(-2, 3) for dx in range(-2, 3)]
            forth = min(np.linalg.norm(q[:, y, x] - r[:, v, u]) for v, u in near)
            back = min(np.linalg.norm(r[:, y, x] - q[:, v, u]) for v, u in near)
            expected[y, x] = max(forth, back)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_no_tolerance_is_the_plain_distance():
    query, reference = _random(2, 4, 5, 6), _random(2, 4, 5, 6, seed=1)
    result = tolerant_distance(query, reference, tolerance_shifts(0.0))
    torch.testing.assert_close(result, (query - reference).norm(dim=1))


def test_fractional_shift_of_a_ramp_and_shifts_in_cells():
    ramp = (10.0 * torch.arange(8.0)[:, None] + torch.arange(8.0))[None, None]
    torch.testing.assert_close(
        next(shifted(ramp, [(0.25, -1.5)]))[0, 0, 2:-2, 2:-2], ramp[0, 0, 2:-2, 2:-2] + 2.5 - 1.5
    )
    assert tolerance_shifts(0.5) == [(dy, dx) for dy in (-0.5, 0, 0.5) for dx in (-0.5, 0, 0.5)]
    assert len(tolerance_shifts(1.5)) == 25


def test_missing_and_added_parts_have_equal_distance():
    blank = torch.zeros(1, 1, 15, 15)
    dot = blank.clone()
    dot[0, 0, 7, 7] = 1
    for pair in ((blank, dot), (dot, blank)):
        result = tolerant_distance(*pair, tolerance_shifts(2.0))[0]
        assert result[7, 7] == 1
        assert result.sum() == 1


def test_top_mean_weights_the_last_pixel_by_the_fraction():
    maps, alpha = torch.zeros(1, 10, 10), torch.zeros(1, 100)
    maps.flatten()[:3] = torch.tensor([8.0, 4.0, 2.0])
    alpha[:, :25] = 1
    # a tenth of 25 pixels: two and a half
    torch.testing.assert_close(top_mean(maps, alpha.view(1, 10, 10), 0.1), torch.tensor([(8 + 4 + 0.5 * 2) / 2.5]))


def test_top_mean_counts_the_objects_pixels():
    maps = _random(2, 20, 20)
    alpha = torch.zeros(2, 20, 20, dtype=torch.float64)
    alpha[0, :10] = 1  # the second has no object: the image's area counts
    result = top_mean(maps, alpha, 0.1)
    for index, count in enumerate((20, 40)):
        expected = np.sort(maps[index].numpy().ravel())[-count:].mean()
        np.testing.assert_allclose(result[index].item(), expected)


def test_maps_of_windows_return_to_their_places():
    alpha = torch.zeros(3, 60, 80)
    alpha[0, 10:30, 40:60] = 1
    alpha[1, 50:60, 60:80] = 1
    crop = ObjectCrop.around(alpha, 24, 0.1)
    assert crop.boxes == ((8, 38, 24), (36, 56, 24), (-10, 0, 80))
    image = _random(3, 2, 60, 80)
    windows = crop.apply(image)
    torch.testing.assert_close(windows[0], image[0, :, 8:32, 38:62])
    torch.testing.assert_close(windows[1], image[1, :, 36:60, 56:80])
    back = crop.restore(windows[:, 0], fill=-1.0)
    torch.testing.assert_close(back[0, 8:32, 38:62], image[0, 0, 8:32, 38:62])
    assert (back[0, :8] == -1).all()
    assert (back[2] >= 0).all()


@pytest.mark.parametrize("size", [32, 96])
def test_resized_window_keeps_places(size):
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    alpha = torch.zeros(1, 64, 64)
    alpha[0, 12:44, 8:40] = 1
    crop = ObjectCrop.around(alpha, size, 0.25)
    back = crop.restore(crop.apply(torch.stack([rows, columns])[None])[:, 0])[0]
    torch.testing.assert_close(back[12:44, 8:40], rows[12:44, 8:40], atol=0.03, rtol=0)
