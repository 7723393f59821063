# SPDX-License-Identifier: Apache-2.0
"""Resizing as matrix products: exact for any image size, and the same in every runtime."""

import torch
from jaxtyping import Float
from torch import Tensor


def window_matrix(length: int, size: int, start: float, extent: float, like: Tensor) -> Float[Tensor, "size length"]:
    """Rows of an antialiased bilinear resize of a window to ``size`` cells.

    OpenVINO converts ``interpolate(antialias=True)`` to something else; a product with this matrix is the same filter,
    and ``length`` may be symbolic.

    Args:
        length: pixels along this axis of the image.
        size: cells of the window.
        start: where the window begins, as a part of the image.
        extent: length of the window, as a part of the image.
        like: gives dtype and device.
    """
    cells = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    pixels = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
    centers = (start + cells * (extent / size)) * length
    reach = torch.ones_like(cells[:1]) * length * (extent / size)
    weights = torch.relu(1 - (pixels - centers[:, None]).abs() / reach.clamp(min=1.0))
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def softening_matrix(length: int, size: int, start: float, extent: float, like: Tensor) -> Float[Tensor, "size size"]:
    """Rows that make ``size`` cells as soft as if they had been cut out of an image of ``length`` pixels.

    The cells are resized to the image's pixels, antialiased, and back by ``window_matrix``. Where the image has as many
    pixels as the window has cells, or more, nothing is changed.

    Args:
        length: pixels along this axis of the image.
        size: cells of the window.
        start: where the window begins, as a part of the image.
        extent: length of the window, as a part of the image.
        like: gives dtype and device.
    """
    enlarge = window_matrix(length, size, start, extent, like)
    shrink = enlarge.transpose(0, 1) / enlarge.sum(0)[:, None].clamp(min=1e-6)
    pitch = torch.ones_like(enlarge[:1, :1]) * size / (extent * length)
    return torch.where(pitch > 1, enlarge @ shrink, torch.eye(size, dtype=like.dtype, device=like.device))


def frame_matrix(length: int, size: int, start: float, extent: float, like: Tensor) -> Float[Tensor, "length size"]:
    """Rows that spread a window of ``size`` cells over the pixels of an image, bilinear; 0 outside of the window.

    Args:
        length: pixels along this axis of the image.
        size: cells of the window.
        start: where the window begins, as a part of the image.
        extent: length of the window, as a part of the image.
        like: gives dtype and device.
    """
    cells = torch.arange(size, dtype=like.dtype, device=like.device)
    pixels = (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) / length
    place = (pixels - start) * (size / extent) - 0.5
    inside = ((place >= -0.5) & (place <= size - 0.5)).to(like.dtype)
    weights = torch.relu(1 - (place.clamp(0, size - 1)[:, None] - cells).abs())
    return weights * inside[:, None]


def resized_intrinsics(
    intrinsics: Float[Tensor, "b 4"], size: tuple[int, int], resized: tuple[int, int]
) -> Float[Tensor, "b 4"]:
    """(fx, fy, cx, cy) of images after they are resized.

    Args:
        intrinsics: in pixels.
        size: height and width of the images.
        resized: the same afterwards.
    """
    return intrinsics * intrinsics.new_tensor([resized[axis] / size[axis] for axis in (1, 0, 1, 0)])


def pooling_matrix(length: int, size: int) -> Float[Tensor, "size length"]:
    """Rows of the mean over ``size`` equal parts of ``length`` cells; parts may share cells."""
    edges = torch.arange(size + 1, dtype=torch.float64) * length / size
    left = torch.arange(length, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    weights = shared.clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def sample(images: Float[Tensor, "b c h w"], uv: Float[Tensor, "b 2 h2 w2"]) -> Float[Tensor, "b c h2 w2"]:
    """Images at pixel coordinates, whose first pixel's center is (0.5, 0.5); bilinear, the border repeated.

    Args:
        images: (B, C, H, W).
        uv: columns and rows in pixels.
    """
    scale = uv.new_tensor([2 / images.shape[-1], 2 / images.shape[-2]])
    return torch.nn.functional.grid_sample(
        images, uv.permute(0, 2, 3, 1) * scale - 1, mode="bilinear", padding_mode="border", align_corners=False
    )


def pixel_centers(height: int, width: int, like: Tensor) -> Float[Tensor, "2 h w"]:
    """Column and row of each pixel's center."""
    rows = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    columns = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
