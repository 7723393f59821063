# SPDX-License-Identifier: Apache-2.0
"""Readers of masks in any usual coding: black is background, and every other value, color or opacity is foreground."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from anomalib_pose.data.decoding import decode, has_transparency, image_size
from anomalib_pose.data.images import read_image
from anomalib_pose.data.listing import file_named, first_names
from anomalib_pose.data.pixels import Pixels

logger = logging.getLogger(__name__)

_FEW_COLORS = 64
_COLOR_SAMPLE = 10_000
_FLAT_SHARE = 0.5  # labels form areas; soft outlines and noise of a compression do not (measured: 0.9, 0 and 0.4)
_NEAR = 0.1  # values closer to black or white are noise if there are many of them
_NOISE_RATIO = 2.0  # soft outlines have at most 1.3 values near black and white for each value between (noise: 3)
_LOSSY_BLACK = 0.15
_INVERTED_BORDER = 0.9
_MAX_MISSING = 1 / 3
_NAMES = 5
_reported: set[Path] = set()


def read_mask(path: Path) -> Tensor:
    """Read a mask (H, W) in [0, 1].

    The coding follows from the file:

    * transparency that varies is the mask, unless few colors with black among them show one;
    * in colors, black is the background; without black, the most common color of the border is;
    * one value above 0, label ids and flat areas of several values are foreground everywhere;
    * antialiased and blurred outlines stay soft; noise near black and white, as of JPEG, is removed.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, is transparent everywhere, has values below 0 or NaN, or has colors
            without a background.
    """
    pixels = decode(path)
    color, alpha = pixels.color, pixels.alpha
    if color.dtype.kind in "if" and not bool((color >= 0).all() and np.isfinite(color).all()):
        msg = f"The mask {path} has values below 0 or NaN: expected 0 for the background and more for the object."
        raise ValueError(msg)
    if alpha is not None and not (alpha > 0).any():
        msg = f"The mask {path} is transparent everywhere: save it without transparency, white on black."
        raise ValueError(msg)
    if alpha is not None and alpha.min() < alpha.max():
        if not _shows_mask(color[alpha > 0.5]):
            return torch.from_numpy(_interpret(alpha, 1.0, lossy=pixels.lossy))
        color = np.where(alpha[..., None] > 0.5, color, 0)
    is_gray = color.shape[2] == 1 or bool((color == color[..., :1]).all())
    values = color[..., 0] if is_gray else _distance_from_background(Pixels(color, lossy=pixels.lossy), path)
    white = _white(values)
    return torch.from_numpy(_interpret(values, white, lossy=pixels.lossy, colored=not is_gray))


def read_object_mask(path: Path) -> Tensor:
    """Read the mask of an object (H, W) in [0, 1]; a mask that covers the border or everything is reported.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the mask covers nothing, or ``read_mask`` refuses it.
    """
    mask = read_mask(path)
    covered = mask > 0.5
    if not bool(covered.any()):
        msg = (
            f"The mask {path} covers nothing: expected the object in white on black. Mask the image again, or remove "
            "the image."
        )
        raise ValueError(msg)
    if _covers_border(covered) and path.parent not in _reported:
        _reported.add(path.parent)
        logger.warning(
            "The mask %s covers %s: expected the object in white on black. Other such masks in this folder are not "
            "reported.",
            path, _extent(covered),
        )  # fmt: skip
    return mask


def read_defect_mask(*paths: Path) -> Tensor:
    """Read the mask of a defect (H, W), 0 or 1; one that covers nothing, the border or everything is reported once.

    Args:
        paths: files of equal size, whose union is the mask.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if ``read_mask`` refuses the file.
    """
    mask = torch.stack([read_mask(path) for path in paths]).amax(0).gt(0.5).float()
    covered = mask > 0.5
    if (not bool(covered.any()) or _covers_border(covered)) and paths[0] not in _reported:
        _reported.add(paths[0])
        logger.warning(
            "The mask %s of a defect covers %s: the metrics of its pixels mean nothing.", paths[0], _extent(covered)
        )
    return mask


def _covers_border(covered: Tensor) -> bool:
    """Return whether a mask (H, W) covers nearly all of its border, as an inverted mask does."""
    border = torch.cat([covered[0], covered[-1], covered[:, 0], covered[:, -1]]).float().mean()
    return float(border) > _INVERTED_BORDER


def _extent(covered: Tensor) -> str:
    if not bool(covered.any()):
        return "nothing"
    return "everything" if bool(covered.all()) else "the border of its image, as an inverted mask does"


def mask_of_image(folder: Path, image: Path) -> Path:
    """Return the mask of an image in a folder: ``photo.png``, ``photo.jpg.png`` (COLMAP) or ``photo_mask.png``.

    Any suffix of an image counts. If there is no mask, the first of these paths is returned, as an error needs it. The
    image itself is no mask.

    Raises:
        ValueError: if the image has masks of two of these names.
    """
    names = [file_named(folder, stem) for stem in (image.stem, image.name, f"{image.stem}_mask")]
    masks = [path for path in names if path.is_file() and path.resolve() != image.resolve()]
    if len(masks) > 1:
        msg = f"The image {image} has 2 masks, {masks[0]} and {masks[1].name}: keep one of them."
        raise ValueError(msg)
    return masks[0] if masks else (names[0] if not names[0].is_file() else names[2])


def check_mask_size(mask_path: Path, image_path: Path) -> None:
    """Check that a mask has the size of its image.

    Raises:
        FileNotFoundError: if one of them does not exist.
        ValueError: if sizes differ, or a file is empty or not an image.
    """
    mask, image = image_size(mask_path), image_size(image_path)
    if mask != image:
        msg = (
            f"The mask {mask_path} is {mask[0]} x {mask[1]}, but its image {image_path} is {image[0]} x {image[1]}: "
            "both should have the same size."
        )
        raise ValueError(msg)


def images_with_masks(images: Sequence[tuple[Path, Path | None]]) -> list[bool]:
    """Check that all images of a set have masks of the object, or none, and return which images to use.

    An image has a mask if there is a file, or if its transparency varies. If up to a third of the images have none,
    they are reported and left out, since a scene is fitted with all masks or without.

    Args:
        images: image and file of the mask, or None.

    Raises:
        ValueError: if more than a third of the images, but not all, have no mask; the message names some.
    """
    masked = [mask is not None or has_transparency(image) for image, mask in images]
    if any(masked) and not all(masked):  # an opaque alpha channel is no mask
        masked = [
            mask is not None or (transparent and read_image(image)[1] is not None)
            for transparent, (image, mask) in zip(masked, images, strict=True)
        ]
    return all_with_masks(masked, [image for image, _ in images])


def all_with_masks(masked: Sequence[bool], images: Sequence[Path]) -> list[bool]:
    """Return which images to use, such that all have masks of the object, or none; images left out are reported.

    Args:
        masked: whether each image has a mask.
        images: files of the images.

    Raises:
        ValueError: if more than a third of the images, but not all, have no mask; the message names some.
    """
    missing = [image for is_masked, image in zip(masked, images, strict=True) if not is_masked]
    if not missing or len(missing) == len(images):
        return [True] * len(images)
    names = first_names([path.name for path in missing], _NAMES)
    text = f"{len(missing)} of {len(images)} images in {missing[0].parent} have no mask of the object: {names}."
    if len(missing) > _MAX_MISSING * len(images):
        msg = f"{text} Add their masks, or remove all masks."
        raise ValueError(msg)
    logger.warning("%s They are left out.", text)
    return list(masked)


def _white(values: np.ndarray) -> float:
    """Return the value of white, by type; in wide types and floats by the largest value."""
    if values.dtype.kind == "b":
        return 1.0
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return float(np.iinfo(values.dtype).max)
    return next((white for white in (1.0, 255.0, 65535.0) if values.max() <= white), float(values.max()))


def _shows_mask(colors: np.ndarray) -> bool:
    """Return whether visible pixels (n, C) have few colors, with black among them."""
    palette = _few_colors(colors)
    return palette is not None and len(palette) > 1 and bool((palette == 0).all(1).any())


def _few_colors(colors: np.ndarray) -> np.ndarray | None:
    """Return the different colors (k, C) of pixels (n, C), or None if there are many."""
    sample = colors[:: max(1, len(colors) // _COLOR_SAMPLE)]
    if len(np.unique(sample, axis=0)) > _FEW_COLORS:
        return None
    _, first = np.unique(_color_keys(colors), return_index=True)
    return colors[first] if len(first) <= _FEW_COLORS else None


def _color_keys(colors: np.ndarray) -> np.ndarray:
    """Return one number for each color (..., C), which is much faster to sort than its channels."""
    steps = np.round(colors.astype(np.float64) * (65535 / _white(colors))).astype(np.int64)
    keys: np.ndarray = (steps << 16 * np.arange(colors.shape[-1])).sum(-1)
    return keys


def _distance_from_background(pixels: Pixels, path: Path) -> np.ndarray:
    """Return the largest channel (H, W) of colors on black; 0 and 255 for colors on another background."""
    color = pixels.color
    value = color.max(-1)
    if bool((value <= (_LOSSY_BLACK * _white(value) if pixels.lossy else 0)).any()):
        return value
    keys = _color_keys(color)
    border, counts = np.unique(np.concatenate([keys[0], keys[-1], keys[:, 0], keys[:, -1]]), return_counts=True)
    if _few_colors(color.reshape(-1, 3)) is None or counts.max() < counts.sum() / 2:
        msg = f"The mask {path} has colors, but no background: expected black, or one color along the border."
        raise ValueError(msg)
    return np.where(keys == border[counts.argmax()], 0, 255).astype(np.uint8)


def _interpret(values: np.ndarray, white: float, *, lossy: bool, colored: bool = False) -> np.ndarray:
    """Return the foreground (H, W) in [0, 1], float32, that values (H, W) from 0 to ``white`` show."""
    levels, counts = np.unique(values[values > 0], return_counts=True)
    if not len(levels):
        return np.zeros(values.shape, np.float32)
    if lossy:
        bright = levels > _LOSSY_BLACK * white
        top = levels[bright][counts[bright].argmax()] if bright.any() else white
        return (values > top * (0.25 if colored else 0.5)).astype(np.float32)
    if len(levels) == 1:
        return (values > 0).astype(np.float32)
    highest = levels[-1]
    partial = (values > 0) & (values < highest)
    flat = partial & (ndimage.maximum_filter(values, 3) == ndimage.minimum_filter(values, 3))
    are_labels = flat.sum() > _FLAT_SHARE * partial.sum()
    are_small_ids = highest < white / 2 and len(levels) <= _FEW_COLORS
    is_cut_out = colored and partial.sum() > 0.5 * counts.sum()
    if are_labels or are_small_ids or is_cut_out:
        return (values > 0).astype(np.float32)
    plateau = levels[counts.argmax()] if counts.max() > 0.5 * counts.sum() else white
    return _without_noise(np.clip(values.astype(np.float32) / np.float32(plateau), 0, 1))


def _without_noise(mask: np.ndarray) -> np.ndarray:
    """Set values near 0 and 1 to them if they are noise, as of a JPEG that was saved as PNG."""
    partial = (mask > 0) & (mask < 1)
    near = partial & ((mask <= _NEAR) | (mask >= 1 - _NEAR))
    if near.sum() <= _NOISE_RATIO * (partial.sum() - near.sum()):
        return mask
    return np.where(near, mask.round(), mask)
