# SPDX-License-Identifier: Apache-2.0
"""Photographs are cropped, and what is found is put back where it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.models.looking3d.photograph import crop_query, whole_box, whole_map


def spot(size: int, x: float, y: float) -> torch.Tensor:
    """A Gaussian spot at a place given in parts of the image, (1, 1, size, size)."""
    grid = (torch.arange(size) + 0.5) / size
    return torch.exp(-(((grid[:, None] - y) ** 2 + (grid - x) ** 2) / (2 * 0.03**2)))[None, None]


def centre(image: torch.Tensor) -> tuple[float, float]:
    height, width = image.shape[-2:]
    weights = image[0, 0] / image[0, 0].sum()
    across, down = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    return float((weights.sum(0) * across).sum()), float((weights.sum(1) * down).sum())


@pytest.mark.parametrize("size", [256, 500])
def test_what_is_found_in_the_crop_lies_there_in_the_photograph(size):
    photograph = spot(size, 0.6, 0.35)
    crop = crop_query(photograph.expand(1, 3, -1, -1))
    assert crop.shape == (1, 3, 256, 256)
    x, y = centre(crop[:, :1])
    assert (x, y) != pytest.approx((0.6, 0.35), abs=5e-3)
    back = whole_map(crop[:, :1], size, size)
    assert centre(back) == pytest.approx((0.6, 0.35), abs=1e-3)
    box = whole_box(torch.tensor([[x, y, 0.5, 0.25]]))
    torch.testing.assert_close(box, torch.tensor([[0.6, 0.35, 0.5 * 224 / 256, 0.25 * 224 / 256]]), rtol=0, atol=1e-3)
    assert torch.equal(back[..., :2, :], torch.zeros(1, 1, 2, size))


def test_crop_against_pillow():
    pixels = (255 * torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))).byte()
    large = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((256, 256), Image.BILINEAR)
    expected = large.crop((16, 16, 240, 240)).resize((256, 256), Image.BILINEAR)
    found = crop_query(pixels[None].float() / 255)[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(found, np.asarray(expected), atol=2)
