# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data.decoding import image_size
from anomalib_pose.data.images import (
    pad_to_square,
    read_image,
    resize_bicubic,
    square_margins,
    undistort,
)
from anomalib_pose.data.masks import check_mask_size, read_mask


def _save(path, array):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def test_an_rgb_image_is_read_as_it_is_stored(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    image, alpha = read_image(_save(tmp_path / "a.png", pixels))
    assert alpha is None
    assert image.dtype == torch.float32
    assert np.allclose(image.numpy(), pixels.transpose(2, 0, 1) / 255)
    assert image_size(tmp_path / "a.png") == (7, 5)


def test_alpha_is_composited_on_white_and_returned(tmp_path):
    pixels = np.zeros((1, 3, 4))
    pixels[0, :, 3] = [0, 51, 255]  # shares 0, 0.2 and 1
    pixels[0, :, 0] = 255
    image, alpha = read_image(_save(tmp_path / "a.png", pixels))
    assert torch.allclose(alpha, torch.tensor([[0, 0.2, 1]]))
    assert torch.allclose(image[0], torch.ones(1, 3))
    assert torch.allclose(image[1], torch.tensor([[1, 0.8, 0]]))


def test_alpha_that_is_opaque_everywhere_is_ignored(tmp_path):
    image, alpha = read_image(_save(tmp_path / "a.png", np.full((2, 2, 4), 255)))
    assert alpha is None
    assert image.shape == (3, 2, 2)


def test_gray_and_sixteen_bit_images_become_rgb(tmp_path):
    image, _ = read_image(_save(tmp_path / "gray.png", [[0, 102], [204, 255]]))
    assert torch.allclose(image, torch.tensor([[0, 0.4], [0.8, 1]]).expand(3, 2, 2))
    Image.fromarray(np.array([[0, 13107], [65535, 0]], dtype=np.uint16)).save(tmp_path / "deep.png")
    image, _ = read_image(tmp_path / "deep.png")
    assert torch.allclose(image, torch.tensor([[0, 0.2], [1, 0]]).expand(3, 2, 2))


@pytest.mark.parametrize("read", [read_image, read_mask, image_size])
def test_bad_files_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read(tmp_path / "missing.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png is empty"):
        read(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(ValueError, match=r"text\.png cannot be read"):
        read(tmp_path / "text.png")


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_an_image_cut_short_is_named(tmp_path, read):
    path = _save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3)))
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        read(tmp_path / "cut.png")


def test_masks_of_0_and_1_mean_what_masks_of_0_and_255_mean(tmp_path):
    truth = torch.tensor([[0.0, 1], [1, 0]])
    assert torch.equal(read_mask(_save(tmp_path / "255.png", truth.numpy() * 255)), truth)
    assert torch.equal(read_mask(_save(tmp_path / "1.png", truth.numpy())), truth)
    assert torch.equal(read_mask(_save(tmp_path / "0.png", np.zeros((2, 2)))), torch.zeros(2, 2))


def test_a_mask_of_another_size_is_refused(tmp_path):
    image, mask = _save(tmp_path / "a.png", np.zeros((4, 6, 3))), _save(tmp_path / "a_mask.png", np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"a_mask\.png is 4 x 4.*a\.png is 6 x 4"):
        check_mask_size(mask, image)
    check_mask_size(_save(tmp_path / "b.png", np.zeros((4, 6))), image)


@pytest.mark.parametrize("size", [5, 8, 24])
def test_bicubic_resizing_is_the_same_for_an_image_and_a_batch(size):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = resize_bicubic(images, size)
    assert batch.shape == (2, 3, size, size)
    assert 0 <= batch.min() <= batch.max() <= 1
    assert all(torch.equal(resize_bicubic(image, size), resized) for image, resized in zip(images, batch, strict=True))
    assert (size == 8) == (batch is images)


@pytest.mark.parametrize(("height", "width"), [(4, 7), (7, 4), (5, 5)])
def test_padding_puts_the_image_at_the_margins_of_the_square(height, width):
    square = pad_to_square(torch.zeros(2, height, width), 1.0)
    top, left = square_margins(height, width)
    side = max(height, width)
    assert square.shape == (2, side, side)
    assert not square[:, top : top + height, left : left + width].any()
    assert square.sum() == 2 * (side * side - height * width)


def test_undistortion_follows_browns_formula():
    # An image whose values are the coordinates of its own pixels tells where each undistorted pixel was taken from.
    width, height = 40, 30
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    K = torch.tensor([[50.0, 0, 19], [0, 48, 16], [0, 0, 1]])
    k1, k2, p1, p2, k3 = distortion = (-0.2, 0.05, 0.01, -0.02, 0.01)
    a, b = (x - 19) / 50, (y - 16) / 48
    r2 = a * a + b * b
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    true_x = 50 * (a * radial + 2 * p1 * a * b + p2 * (r2 + 2 * a * a)) + 19
    true_y = 48 * (b * radial + p1 * (r2 + 2 * b * b) + 2 * p2 * a * b) + 16
    found = undistort(torch.stack([x, y]), K, distortion)
    inside = (true_x > 1) & (true_x < width - 1) & (true_y > 1) & (true_y < height - 1)
    assert inside.float().mean() > 0.8
    # OpenCV interpolates on a grid of 1/32 pixel.
    assert (found - torch.stack([true_x, true_y])).abs()[:, inside].max() < 1 / 32
    assert (true_x - x).abs().max() > 0.5


def test_an_undistorted_mask_stays_binary_and_is_0_outside_the_photo():
    K = torch.tensor([[20.0, 0, 10], [0, 20, 10], [0, 0, 1]])
    mask = undistort(torch.ones(1, 20, 20), K, (0.4, 0.0, 0.0, 0.0, 0.0), nearest=True)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[0, 0, 0] == 0
    assert mask[0, 10, 10] == 1
