# SPDX-License-Identifier: Apache-2.0
"""Crops of queries that keep the box of a defect, and augmentations of queries and boxes.

Unless stated otherwise, boxes are (x_min, y_min, x_max, y_max) in pixels of the 256 x 256 query.
"""

import torch
from torch import Tensor

from anomalib_pose.data.reference_views.queries import CROP_SIZE, QUERY_SIZE

_MAX_OFFSET = QUERY_SIZE - CROP_SIZE
_TRIES = 10
# A crop with less of the box cannot be distinguished from a crop of a good object.
_MIN_BOX_FRACTION = 0.25
_WHITE = 254 / 255


def choose_crop(box: Tensor | None, *, random: bool) -> tuple[int, int]:
    """Return the first row and column of a crop of a query: random, or central.

    A crop with less than a quarter of the box is rejected. After ten rejections (one for the central crop) the crop is
    centered on the box, as far as the border of the query allows.

    Args:
        box: box (4,) of the defect, or None.
        random: choose the crop at random, with PyTorch's generator.
    """
    if box is None:
        return _sample_crop(random=random)
    for _ in range(_TRIES if random else 1):
        top, left = _sample_crop(random=random)
        if box_fraction(box, top, left) >= _MIN_BOX_FRACTION:
            return top, left
    middle = (box[:2] + box[2:]) / 2 - CROP_SIZE / 2
    left, top = middle.round().long().clamp(0, _MAX_OFFSET).tolist()
    return top, left


def box_fraction(box: Tensor, top: int, left: int) -> float:
    """Return the fraction of a box's area inside a crop."""
    clipped = _clip_box(box, top, left)
    sides = (clipped[2:] - clipped[:2]).clamp_min(0)
    return float(sides.prod() / (box[2:] - box[:2]).prod())


def box_in_crop(box: Tensor, top: int, left: int) -> Tensor:
    """Convert a box (4,) to center x, center y, width and height, as fractions of a crop's side."""
    clipped = _clip_box(box, top, left) / CROP_SIZE
    return torch.cat([(clipped[:2] + clipped[2:]) / 2, clipped[2:] - clipped[:2]])


def mirror_box(box: Tensor) -> Tensor:
    """Mirror a box (4,) of center and size, as fractions, left to right."""
    return torch.cat([1 - box[:1], box[1:]])


def jitter_brightness_contrast(image: Tensor, max_change: float = 0.2) -> Tensor:
    """Change brightness and contrast of an image (3, H, W) on white, at random; white stays white.

    A darkened background would count as the object. Random numbers come from PyTorch's generator.

    Args:
        image: RGB in [0, 1].
        max_change: largest change of brightness and of contrast.
    """
    contrast, brightness = (max_change * (2 * torch.rand(2) - 1)).tolist()
    changed = ((1 + contrast) * image + brightness).clamp(0, 1)
    return torch.where(image.amin(0) >= _WHITE, image, changed)


def _sample_crop(*, random: bool) -> tuple[int, int]:
    if not random:
        return _MAX_OFFSET // 2, _MAX_OFFSET // 2
    top, left = torch.randint(0, _MAX_OFFSET + 1, (2,)).tolist()
    return top, left


def _clip_box(box: Tensor, top: int, left: int) -> Tensor:
    """Convert a box to pixels of a crop, and clip it at the crop's border."""
    return (box - box.new_tensor([left, top, left, top])).clamp(0, CROP_SIZE)
