# SPDX-License-Identifier: Apache-2.0
"""Queries from photographs, their crops, and the boxes of the crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data.reference_views.queries import evaluation_view, query_on_white, read_query, square_query
from anomalib_pose.data.reference_views.query_crops import (
    box_fraction,
    box_in_crop,
    choose_crop,
    jitter_brightness_contrast,
    mirror_box,
)


def photograph(background: float, height: int = 60, width: int = 80) -> torch.Tensor:
    image = torch.full((3, height, width), background)
    image[:, 20:40, 30:50] = torch.tensor([0.2, 0.5, 0.7])[:, None, None]
    return image


def test_an_image_on_white_is_taken_as_it_is() -> None:
    image = photograph(0.97)
    image[:, :15, :20] = 0.3  # the object may reach the border
    assert torch.equal(query_on_white(image), image)


def test_the_error_of_another_background_says_how_to_remove_it() -> None:
    with pytest.raises(ValueError, match=r"only 0% of the border.*cut the object out"):
        query_on_white(photograph(0.85))
    colored = photograph(1.0)
    colored[2] = 0.6  # yellow is not white
    with pytest.raises(ValueError, match="background should be white"):
        query_on_white(colored)
    half = photograph(1.0)
    half[:, 30:] = 0.2
    with pytest.raises(ValueError, match="of the border"):
        query_on_white(half)


def test_a_mask_makes_the_background_white() -> None:
    image = photograph(0.3)
    alpha = torch.zeros(60, 80)
    alpha[20:40, 30:50] = 1
    alpha[19, 30:50] = 0.25
    query = query_on_white(image, alpha)
    expected = torch.ones(3, 60, 80)
    expected[:, 20:40, 30:50] = image[:, 20:40, 30:50]
    expected[:, 19, 30:50] = 0.25 * 0.3 + 0.75
    torch.testing.assert_close(query, expected)
    with pytest.raises(ValueError, match=r"\(60, 80\), found \(60, 60\)"):
        query_on_white(image, torch.ones(60, 60))
    with pytest.raises(ValueError, match="mask of the object is empty"):
        query_on_white(image, torch.zeros(60, 80))


def test_photographs_are_read_with_transparency_or_mask(tmp_path: Path) -> None:
    pixels = (photograph(0.3) * 255).round().byte().permute(1, 2, 0).numpy()
    alpha = np.zeros((60, 80), np.uint8)
    alpha[20:40, 30:50] = 255
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "alpha.png")
    Image.fromarray(alpha).save(tmp_path / "mask.png")
    expected = torch.ones(3, 60, 80)
    expected[:, 20:40, 30:50] = torch.from_numpy(pixels[20:40, 30:50]).permute(2, 0, 1) / 255
    torch.testing.assert_close(read_query(tmp_path / "alpha.png"), expected)
    torch.testing.assert_close(read_query(tmp_path / "plain.png", tmp_path / "mask.png"), expected)
    with pytest.raises(ValueError, match=r"plain.png cannot be used as a query.*give a mask"):
        read_query(tmp_path / "plain.png")
    with pytest.raises(FileNotFoundError, match=r"none.png"):
        read_query(tmp_path / "none.png")
    Image.fromarray(alpha[:30]).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small.png"):
        read_query(tmp_path / "plain.png", tmp_path / "small.png")


@pytest.mark.parametrize(("height", "width"), [(60, 101), (101, 60)])
def test_a_query_becomes_a_square_without_stretching(height: int, width: int) -> None:
    image = torch.ones(3, height, width)
    image[:, 10:50, 15:45] = 0
    scale = 256 / 101
    rows = cols = (0.0, 0.0)
    first = (101 - 60) // 2
    rows = (10 + (first if height == 60 else 0), 50 + (first if height == 60 else 0))
    cols = (15 + (first if width == 60 else 0), 45 + (first if width == 60 else 0))
    square = square_query(image)
    assert square.shape == (3, 256, 256)
    dark = square[0] < 0.5
    assert np.flatnonzero(dark.any(1))[[0, -1]] == pytest.approx([rows[0] * scale, rows[1] * scale - 1], abs=1)
    assert np.flatnonzero(dark.any(0))[[0, -1]] == pytest.approx([cols[0] * scale, cols[1] * scale - 1], abs=1)
    assert float(square[:, 0].min()) == 1


def test_evaluation_view_is_pillows_central_crop() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((512, 512), Image.Resampling.BICUBIC)
    expected = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    expected = expected.resize((256, 256), Image.Resampling.BILINEAR)
    view = evaluation_view(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)
    difference = view.permute(1, 2, 0).numpy() * 255 - np.array(expected)
    assert np.abs(difference).max() < 2


def test_boxes_follow_the_crop() -> None:
    box = torch.tensor([50.0, 60.0, 106.0, 88.0])
    assert box_in_crop(box, 4, 22).tolist() == pytest.approx([56 / 224, 70 / 224, 56 / 224, 28 / 224])
    # a quarter of the breadth is outside to the left
    assert box_in_crop(torch.tensor([0.0, 60, 40, 88]), 0, 10).tolist() == pytest.approx(
        [15 / 224, 74 / 224, 30 / 224, 28 / 224]
    )
    assert box_fraction(torch.tensor([0.0, 60, 40, 88]), 0, 10) == pytest.approx(0.75)
    assert box_fraction(torch.tensor([0.0, 60, 10, 88]), 0, 10) == 0
    assert mirror_box(torch.tensor([0.25, 0.3, 0.1, 0.2])).tolist() == pytest.approx([0.75, 0.3, 0.1, 0.2])


def test_each_crop_contains_the_box() -> None:
    """Each crop contains a box in the corner, also in evaluation, where the central crop would leave it out."""
    corner = torch.tensor([250.0, 251.0, 256.0, 256.0])
    assert box_fraction(corner, 16, 16) == 0
    assert choose_crop(corner, random=False) == (32, 32)
    torch.manual_seed(0)
    fractions = [box_fraction(corner, *choose_crop(corner, random=True)) for _ in range(50)]
    assert min(fractions) >= 0.25
    left = torch.tensor([0.0, 120.0, 4.0, 130.0])
    assert choose_crop(left, random=False)[1] == 0
    assert choose_crop(torch.tensor([100.0, 100, 120, 120]), random=False) == (16, 16)
    assert choose_crop(None, random=False) == (16, 16)


def test_random_crops_cover_all_offsets_and_repeat_with_the_seed() -> None:
    torch.manual_seed(1)
    crops = [choose_crop(None, random=True) for _ in range(400)]
    torch.manual_seed(1)
    assert [choose_crop(None, random=True) for _ in range(400)] == crops
    rows, columns = np.array(crops).T
    assert set(rows) == set(columns) == set(range(33))


def test_brightness_and_contrast_change_only_the_object_and_within_bounds() -> None:
    image = torch.ones(3, 8, 8)
    image[:, 2:6, 2:6] = torch.linspace(0.1, 0.6, 48).reshape(3, 4, 4)
    torch.manual_seed(0)
    changed_images = [jitter_brightness_contrast(image) for _ in range(200)]
    for changed in changed_images:
        assert bool((changed[:, 0] == 1).all())
        y, x = changed[:, 2:6, 2:6].flatten(), image[:, 2:6, 2:6].flatten()
        inner = (y > 0) & (y < 1)
        slope, offset = np.polyfit(x[inner], y[inner], 1)
        np.testing.assert_allclose(y[inner], slope * x[inner] + offset, atol=1e-5)
        assert 0.8 - 1e-4 <= slope <= 1.2 + 1e-4
        assert abs(offset) <= 0.2 + 1e-4
    assert np.std([float(changed[0, 3, 3]) for changed in changed_images]) > 0.05
