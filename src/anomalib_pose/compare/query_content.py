# SPDX-License-Identifier: Apache-2.0
"""Test whether an image has content to judge: finite pixels, a usable size, and more than one brightness."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

MIN_SIDE = 16
"""Shortest side in pixels of an image that can be judged."""
CONTENT_CELLS = 16
"""Cells along each side whose mean colors are compared: means over cells average sensor noise out."""
_MIN_CONTRAST = 4 / 255  # noise with a standard deviation of 5/255 in 128 x 128 pixels stays below


def is_finite(images: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
    """Return whether all pixels of an image are finite, as a graph that every runtime evaluates alike.

    Args:
        images: images of any range.
    """
    # A maximum ignores NaN in some runtimes, a sum does not; NaN compares as False.
    return images.sum((1, 2, 3)).abs() < torch.finfo(images.dtype).max


def has_contrast(cells: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
    """Return whether the colors of an image's cells differ; False if a color is NaN or infinite.

    Args:
        cells: mean colors of the cells, in [0, 1].
    """
    contrast = (cells.amax((2, 3)) - cells.amin((2, 3))).amax(1)
    return (contrast > _MIN_CONTRAST) & is_finite(cells)


def white_where(blank: Bool[Tensor, " b"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return images with blank ones made white, so that NaN does not spread to scores and maps.

    Args:
        blank: images to replace.
        images: RGB in [0, 1].
    """
    return torch.where(blank[:, None, None, None], torch.ones_like(images), images)


def has_content(images: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
    """Return whether images can be judged; False for an image that is tiny, constant up to noise, or not finite.

    Args:
        images: RGB in [0, 1].
    """
    if min(images.shape[-2:]) < MIN_SIDE:
        return torch.zeros(len(images), dtype=torch.bool, device=images.device)
    # A single NaN or infinite pixel makes the mean of its cell NaN or infinite.
    return has_contrast(functional.adaptive_avg_pool2d(images, CONTENT_CELLS))
