# SPDX-License-Identifier: Apache-2.0
"""Image resampling as matrix products, which are exact for any image size and the same in every runtime.

Twins: ``torch.nn.functional.interpolate`` with ``antialias=True`` for ``window_matrix`` and ``softening_matrix`` (to
1e-5, inside the border), and ``adaptive_avg_pool2d`` for ``pooling_matrix`` where the parts are whole cells (to 1e-5).
``resize_pinhole`` is ``anomalib_pose.geometry.resize_intrinsics`` for four numbers instead of a matrix (to 1e-5).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def window_matrix(length: int, size: int, start: float, extent: float, like: Tensor) -> Float[Tensor, "size length"]:
    """Compute the matrix that crops a window and resizes it to ``size`` cells, bilinear and antialiased.

    OpenVINO does not convert ``interpolate(antialias=True)`` faithfully. A product with this matrix is the same
    filter, and ``length`` may be symbolic.

    Args:
        length: pixels of the image along this axis.
        size: cells of the window.
        start: where the window begins, as a fraction of the image.
        extent: length of the window, as a fraction of the image.
        like: tensor that gives dtype and device.
    """
    cells = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    pixels = torch.arange(length, dtype=like.dtype, device=like.device) + 0.5
    centers = (start + cells * (extent / size)) * length
    reach = torch.ones_like(cells[:1]) * length * (extent / size)
    weights = torch.relu(1 - (pixels - centers[:, None]).abs() / reach.clamp(min=1.0))
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def softening_matrix(length: int, size: int, start: float, extent: float, like: Tensor) -> Float[Tensor, "size size"]:
    """Compute the matrix that softens ``size`` cells to the resolution of an image of ``length`` pixels.

    The cells are resized to the image's pixels, antialiased, and back with ``window_matrix``. The matrix is the
    identity where the image has at least as many pixels as the window has cells.

    Args:
        length: pixels of the image along this axis.
        size: cells of the window.
        start: where the window begins, as a fraction of the image.
        extent: length of the window, as a fraction of the image.
        like: tensor that gives dtype and device.
    """
    enlarge = window_matrix(length, size, start, extent, like)
    shrink = enlarge.transpose(0, 1) / enlarge.sum(0)[:, None].clamp(min=1e-6)
    pitch = torch.ones_like(enlarge[:1, :1]) * size / (extent * length)
    return torch.where(pitch > 1, enlarge @ shrink, torch.eye(size, dtype=like.dtype, device=like.device))


def frame_matrix(length: int, size: int, start: float, extent: float, like: Tensor) -> Float[Tensor, "length size"]:
    """Compute the matrix that pastes a window of ``size`` cells into an image, bilinear; 0 outside the window.

    Args:
        length: pixels of the image along this axis.
        size: cells of the window.
        start: where the window begins, as a fraction of the image.
        extent: length of the window, as a fraction of the image.
        like: tensor that gives dtype and device.
    """
    cells = torch.arange(size, dtype=like.dtype, device=like.device)
    pixels = (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) / length
    position = (pixels - start) * (size / extent) - 0.5
    inside = ((position >= -0.5) & (position <= size - 0.5)).to(like.dtype)
    weights = torch.relu(1 - (position.clamp(0, size - 1)[:, None] - cells).abs())
    return weights * inside[:, None]


def pooling_matrix(length: int, size: int) -> Float[Tensor, "size length"]:
    """Compute the matrix of means over ``size`` equal parts of ``length`` cells; neighboring parts may share cells.

    Args:
        length: cells along this axis.
        size: parts.
    """
    edges = torch.arange(size + 1, dtype=torch.float64) * length / size
    left = torch.arange(length, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    weights = overlap.clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def resize_pinhole(
    pinhole: Float[Tensor, "b 4"], from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[Tensor, "b 4"]:
    """Scale (fx, fy, cx, cy) to an image that was resized.

    Args:
        pinhole: (fx, fy, cx, cy) in pixels.
        from_size: height and width of the image before.
        to_size: height and width of the image afterwards.
    """
    return pinhole * pinhole.new_tensor([to_size[axis] / from_size[axis] for axis in (1, 0, 1, 0)])


def sample(images: Float[Tensor, "b c h w"], uv: Float[Tensor, "b 2 h2 w2"]) -> Float[Tensor, "b c h2 w2"]:
    """Sample images at pixel coordinates, bilinear; the border is repeated outwards.

    Args:
        images: (B, C, H, W).
        uv: column and row in pixels; the center of the first pixel is (0.5, 0.5).
    """
    scale = uv.new_tensor([2 / images.shape[-1], 2 / images.shape[-2]])
    return torch.nn.functional.grid_sample(
        images, uv.permute(0, 2, 3, 1) * scale - 1, mode="bilinear", padding_mode="border", align_corners=False
    )


def pixel_centers(height: int, width: int, like: Tensor) -> Float[Tensor, "2 h w"]:
    """Return the column and the row of the center of each pixel.

    Args:
        height: rows of the image.
        width: columns of the image.
        like: tensor that gives dtype and device.
    """
    rows = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    columns = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])
