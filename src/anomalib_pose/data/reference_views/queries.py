# SPDX-License-Identifier: Apache-2.0
"""Preparation of photographs as queries for networks with reference views: the object on white, in a square."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.data.images import over_white, pad_to_square, read_image
from anomalib_pose.data.masks import check_mask_size, read_object_mask

QUERY_SIZE = 256
"""Side of a query in pixels."""
CROP_SIZE = 224
"""Side in pixels of the crop that a network sees; the crop is enlarged to ``QUERY_SIZE``."""
CROP_MARGIN = (QUERY_SIZE - CROP_SIZE) // 2
"""Pixels that the central crop of evaluation leaves out on each side."""

# Darker pixels count as the object; the network's own limit is 0.9.
_NEAR_WHITE = 0.94
_MIN_WHITE_FRACTION = 0.8
_BORDER_FRACTION = 1 / 32


def query_on_white(image: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Composite the object of a photograph on white.

    Args:
        image: RGB (3, H, W) in [0, 1].
        alpha: fraction of each pixel that the object covers (H, W), in [0, 1]; None if it is unknown, then the
            background has to be white already.

    Returns:
        RGB (3, H, W) in [0, 1].

    Raises:
        ValueError: if the sizes of ``alpha`` and ``image`` differ, ``alpha`` is 0 everywhere, or ``alpha`` is None and
            the border is not white.
    """
    if alpha is None:
        white_fraction = float((_border(image.amin(0)) >= _NEAR_WHITE).float().mean())
        if white_fraction < _MIN_WHITE_FRACTION:
            msg = (
                f"The background should be white, but only {white_fraction:.0%} of the border of the image is "
                f"(expected {_MIN_WHITE_FRACTION:.0%} or more): cut the object out and save it with transparency, give "
                "a mask of the object, or paint the background white."
            )
            raise ValueError(msg)
        return image
    if alpha.shape != image.shape[-2:]:
        msg = f"A mask should have the size of its image, {tuple(image.shape[-2:])}, found {tuple(alpha.shape)}."
        raise ValueError(msg)
    if not bool((alpha > 0).any()):
        msg = "The mask of the object is empty: expected values above 0 where the object is."
        raise ValueError(msg)
    return over_white(image, alpha)


def read_query(path: str | Path, mask_path: str | Path | None = None) -> Tensor:
    """Read a photograph as a query (3, H, W) in [0, 1] on white.

    Args:
        path: the photograph; its transparency, if it has any, separates the object from the background.
        mask_path: mask of the object, white on black; it applies in addition to the transparency.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file cannot be read, mask and image differ in size, or neither transparency, mask nor a white
            border separates the object from the background.
    """
    path = Path(path)
    image, alpha = read_image(path)
    mask = None
    if mask_path is not None:
        check_mask_size(Path(mask_path), path)
        mask = read_object_mask(Path(mask_path))
    elif alpha is not None:
        # read_image has composited the object on white
        return image
    try:
        return query_on_white(image, mask)
    except ValueError as error:
        msg = f"{path} cannot be used as a query: {error}"
        raise ValueError(msg) from error


def square_query(image: Tensor) -> Tensor:
    """Pad queries (..., 3, H, W) on white to squares, and resize them to (..., 3, 256, 256)."""
    return resize_square(pad_to_square(image, 1.0), QUERY_SIZE)


def evaluation_view(image: Tensor) -> Tensor:
    """Return the network's view of queries (..., 3, H, W) on white: the enlarged central crop (..., 3, 256, 256).

    Training uses crops of the same size, so that objects have the same scale in training and evaluation.
    """
    return enlarge_crop(square_query(image), CROP_MARGIN, CROP_MARGIN)


def enlarge_crop(image: Tensor, top: int, left: int, *, nearest: bool = False) -> Tensor:
    """Crop 224 x 224 pixels of square queries (..., C, 256, 256) and enlarge them to (..., C, 256, 256).

    Args:
        image: the queries, or masks of them.
        top: first row of the crop.
        left: first column of the crop.
        nearest: sample nearest neighbors, as masks need it.
    """
    crop = image[..., top : top + CROP_SIZE, left : left + CROP_SIZE]
    return resize_square(crop, QUERY_SIZE, nearest=nearest)


def resize_square(image: Tensor, size: int, *, nearest: bool = False) -> Tensor:
    """Resize images (..., C, H, W) to squares (..., C, size, size).

    The resizing is bilinear, and antialiased where images shrink; or it samples nearest neighbors.
    """
    batch = image.reshape(-1, *image.shape[-3:])
    if nearest:
        squares = F.interpolate(batch, (size, size), mode="nearest-exact")
    else:
        # Antialiasing changes something only where images shrink; elsewhere it is off for the sake of exported graphs.
        shrinks = max(image.shape[-2:]) > size
        squares = F.interpolate(batch, (size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        squares = squares.clamp(0, 1)
    return squares.reshape(*image.shape[:-2], size, size)


def _border(values: Tensor) -> Tensor:
    """Return the values (n,) of an image (H, W) in a band along its border."""
    height, width = values.shape
    breadth = max(1, round(min(height, width) * _BORDER_FRACTION))
    in_band = torch.ones(height, width, dtype=torch.bool)
    in_band[breadth : height - breadth, breadth : width - breadth] = False
    return values[in_band]
