# SPDX-License-Identifier: Apache-2.0

import torch

from anomalib_pose.deploy.graph.resample import (
    frame_matrix,
    pooling_matrix,
    resize_pinhole,
    softening_matrix,
    window_matrix,
)
from anomalib_pose.geometry import resize_intrinsics


def test_window_matrix_is_the_antialiased_resize():
    image = torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(0))
    rows, columns = window_matrix(90, 32, 0, 1, image), window_matrix(70, 80, 0, 1, image)
    expected = torch.nn.functional.interpolate(image, (32, 80), mode="bilinear", antialias=True)
    torch.testing.assert_close(rows @ image @ columns.T, expected, atol=1e-5, rtol=0)


def test_window_matrix_crops_a_window():
    image = torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(window_matrix(40, 10, 0.25, 0.25, image) @ image, image[10:20])


def test_frame_matrix_pastes_a_window():
    cells = torch.rand(10, 1, generator=torch.Generator().manual_seed(0))
    frame = frame_matrix(40, 10, 0.25, 0.25, cells) @ cells
    torch.testing.assert_close(frame[10:20], cells)
    assert not frame[:10].any()
    assert not frame[20:].any()


def test_softening_is_a_resize_to_the_image_and_back():
    cells = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    rows, columns = softening_matrix(20, 32, 0, 1, cells), softening_matrix(26, 40, 0, 1, cells)
    small = torch.nn.functional.interpolate(cells, (20, 26), mode="bilinear", antialias=True)
    expected = torch.nn.functional.interpolate(small, (32, 40), mode="bilinear")
    softened = rows @ cells @ columns.T
    inner = (..., slice(2, -2), slice(2, -2))  # at the border the matrix normalizes the weights otherwise
    torch.testing.assert_close(softened[inner], expected[inner], atol=1e-5, rtol=0)


def test_a_softened_window_agrees_with_the_softened_image_and_large_images_are_not_softened():
    image = torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    # away from the window's border, pixels and cells of window and image coincide
    whole, part = (
        softening_matrix(40, 64, 0, 1, image) @ image,
        softening_matrix(40, 32, 0.25, 0.5, image) @ image[16:48],
    )
    torch.testing.assert_close(part[3:-3], whole[19:45], atol=1e-5, rtol=0)
    assert torch.equal(softening_matrix(64, 64, 0, 1, image), torch.eye(64))
    assert torch.equal(softening_matrix(90, 32, 0.2, 0.5, image), torch.eye(32))


def test_pooling_matrix_is_the_mean_of_areas():
    image = torch.rand(1, 1, 50, 30)
    pooled = pooling_matrix(50, 25) @ image @ pooling_matrix(30, 10).T
    torch.testing.assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(image, (25, 10)))
    torch.testing.assert_close(pooling_matrix(7, 3).sum(1), torch.ones(3))


def test_resized_pinholes_are_the_twins_resized_intrinsics():
    intrinsics = torch.tensor([[90.0, 0, 31], [0, 80, 24], [0, 0, 1]])
    expected = resize_intrinsics(intrinsics, 64, 48, 96, 40)[[0, 1, 0, 1], [0, 1, 2, 2]]
    pinhole = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
    torch.testing.assert_close(resize_pinhole(pinhole[None], (48, 64), (40, 96))[0], expected, atol=1e-5, rtol=0)
