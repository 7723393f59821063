# SPDX-License-Identifier: Apache-2.0
"""Crops of photographs, results mapped back to photographs, and masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data.reference_views.queries import evaluation_view
from anomalib_pose.models.looking3d.photograph import read_photograph, whole_box, whole_map


def spot(height: int, width: int, x: float, y: float) -> torch.Tensor:
    """Create a round spot at a place in fractions of the image (1, 1, height, width)."""
    rows, columns = torch.arange(height) + 0.5 - y * height, torch.arange(width) + 0.5 - x * width
    breadth = 0.03 * max(height, width)
    return torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * breadth**2))[None, None]


def center(image: torch.Tensor) -> tuple[float, float]:
    height, width = image.shape[-2:]
    weights = image[0, 0] / image[0, 0].sum()
    across, down = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return float((weights.sum(0) * across).sum()), float((weights.sum(1) * down).sum())


@pytest.mark.parametrize(("height", "width"), [(256, 256), (500, 500), (300, 421), (421, 300)])
def test_maps_and_boxes_are_mapped_back_to_the_photograph(height, width):
    photograph = 1 - spot(height, width, 0.6, 0.35)
    crop = 1 - evaluation_view(photograph.expand(1, 3, -1, -1))[:, :1]
    assert crop.shape == (1, 1, 256, 256)
    x, y = center(crop)
    assert (x, y) != pytest.approx((0.6, 0.35), abs=5e-3)
    back = whole_map(crop, height, width)
    assert back.shape == (1, 1, height, width)
    assert center(back) == pytest.approx((0.6, 0.35), abs=1e-3)
    side = 224 / 256 * max(height, width)
    box = whole_box(torch.tensor([[x, y, 0.5, 0.25]]), height, width)
    expected = torch.tensor([[0.6, 0.35, 0.5 * side / width, 0.25 * side / height]])
    torch.testing.assert_close(box, expected, rtol=0, atol=1e-3)
    border = back if height == width else back.flip(2) if height > width else back.transpose(2, 3)
    assert torch.equal(border[..., :2, :], torch.zeros_like(border[..., :2, :]))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 50)])
def test_the_crop_agrees_with_pillow(height, width):
    """Photographs are padded with white, not stretched."""
    pixels = (255 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))).byte()
    square = Image.new("RGB", (max(height, width),) * 2, (255, 255, 255))
    square.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (0, (width - height) // 2))
    expected = square.resize((256, 256), Image.BILINEAR).crop((16, 16, 240, 240)).resize((256, 256), Image.BILINEAR)
    crop = evaluation_view(pixels[None].float() / 255)[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(crop, np.asarray(expected), atol=2)


def test_masks_are_read_from_a_folder(tmp_path):
    gray = np.full((60, 80, 3), 90, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 255
    photograph = tmp_path / "photographs" / "part.jpg"
    for folder in ("photographs", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(gray).save(photograph)
    with pytest.raises(ValueError, match=r"part\.jpg cannot be used as a query: The background should be white"):
        read_photograph(photograph)
    with pytest.raises(FileNotFoundError, match=r"mask of every photograph.* of .*part\.jpg at .*part\.png"):
        read_photograph(photograph, tmp_path / "masks")
    Image.fromarray(mask).save(tmp_path / "masks" / "part.png")
    image = read_photograph(photograph, tmp_path / "masks")
    expected = torch.where(torch.from_numpy(mask) > 0, 90 / 255, 1.0).expand(3, -1, -1)
    torch.testing.assert_close(image, expected, rtol=0, atol=2 / 255)
