# SPDX-License-Identifier: Apache-2.0
"""From a photograph to the query that networks of reference views expect: the object alone, on white, in a square."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.data.images import check_mask_size, over_white, read_image, read_mask

QUERY_SIZE = 256
"""Side of a query in pixels."""
CROP_SIZE = 224
"""Side of the part of it that is shown, enlarged to the whole side again."""
CROP_MARGIN = (QUERY_SIZE - CROP_SIZE) // 2
"""What evaluation leaves out on each side."""

# What is darker counts as the object; the network's own limit is 0.9.
_NEAR_WHITE = 0.94
_LEAST_SHARE = 0.8
_BORDER = 1 / 32


def query_on_white(image: Tensor, alpha: Tensor | None = None) -> Tensor:
    """The object of a photograph on white.

    Args:
        image: RGB (3, H, W) in [0, 1].
        alpha: how much of each pixel the object covers (H, W), in [0, 1]; None if nobody knows, then the background
            has to be white already.

    Returns:
        RGB (3, H, W) in [0, 1].

    Raises:
        ValueError: if ``alpha`` has another size or covers nothing, or there is none and the border is not white.
    """
    if alpha is None:
        share = float((_border(image.amin(0)) >= _NEAR_WHITE).float().mean())
        if share < _LEAST_SHARE:
            msg = (
                f"The background should be white, but only {share:.0%} of the border of the image are (expected "
                f"{_LEAST_SHARE:.0%} or more): cut the object out and save it with transparency, give a mask of it, "
                "or paint the background white."
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
        path: the photograph; where it has transparency, that tells the object from the background.
        mask_path: mask of the object, white on black; goes together with the transparency where there are both.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file cannot be read, mask and image differ in size, or nothing tells the object from the
            background.
    """
    path = Path(path)
    image, alpha = read_image(path)
    mask = None
    if mask_path is not None:
        check_mask_size(Path(mask_path), path)
        mask = read_mask(Path(mask_path))
    elif alpha is not None:
        # read_image has put the object on white
        return image
    try:
        return query_on_white(image, mask)
    except ValueError as error:
        msg = f"{path} is no query: {error}"
        raise ValueError(msg) from error


def square_query(image: Tensor) -> Tensor:
    """Queries (..., 3, H, W) on white as squares (..., 3, 256, 256): padded with white, then resized."""
    return resized(padded(image, 1.0), QUERY_SIZE)


def evaluation_view(image: Tensor) -> Tensor:
    """What a network sees of queries (..., 3, H, W) on white: the middle of the square, enlarged, (..., 3, 256, 256).

    Training shows parts of this size too, so objects are as large here as there.
    """
    return cropped(square_query(image), CROP_MARGIN, CROP_MARGIN)


def cropped(image: Tensor, top: int, left: int, *, nearest: bool = False) -> Tensor:
    """A part of square queries (..., C, 256, 256), enlarged to (..., C, 256, 256).

    Args:
        image: the queries, or masks of them.
        top: first row.
        left: first column.
        nearest: take nearest neighbors, as masks need it.
    """
    part = image[..., top : top + CROP_SIZE, left : left + CROP_SIZE]
    return resized(part, QUERY_SIZE, nearest=nearest)


def square_margins(height: int, width: int) -> tuple[int, int]:
    """Rows above and columns to the left that ``padded`` adds to an image."""
    side = max(height, width)
    return (side - height) // 2, (side - width) // 2


def padded(image: Tensor, value: float) -> Tensor:
    """The smallest squares (..., C, S, S) around images (..., C, H, W), a value at both ends of the shorter side."""
    height, width = image.shape[-2:]
    side, (top, left) = max(height, width), square_margins(height, width)
    return F.pad(image, (left, side - width - left, top, side - height - top), value=value)


def resized(image: Tensor, size: int, *, nearest: bool = False) -> Tensor:
    """Images (..., C, H, W) as squares of ``size``; bilinear, antialiased where they shrink, or nearest neighbors."""
    batch = image.reshape(-1, *image.shape[-3:])
    if nearest:
        found = F.interpolate(batch, (size, size), mode="nearest-exact")
    else:
        # where nothing shrinks it makes no difference, but exported graphs do not know it
        shrinks = max(image.shape[-2:]) > size
        found = F.interpolate(batch, (size, size), mode="bilinear", align_corners=False, antialias=shrinks).clamp(0, 1)
    return found.reshape(*image.shape[:-2], size, size)


def _border(values: Tensor) -> Tensor:
    """The outermost pixels of (H, W), flat, each once."""
    height, width = values.shape
    breadth = max(1, round(min(height, width) * _BORDER))
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[breadth : height - breadth, breadth : width - breadth] = False
    return values[outside]
