# SPDX-License-Identifier: Apache-2.0
"""Which part of a query is shown, what becomes of its box, and random changes of its light.

Boxes here are (x_min, y_min, x_max, y_max) in pixels of the 256 x 256 query.
"""

import torch
from torch import Tensor

from anomalib_pose.data.reference_views.queries import CROP_SIZE, QUERY_SIZE

_LAST = QUERY_SIZE - CROP_SIZE
_TRIES = 10
# With less of its box a defect cannot be told from a good object.
_LEAST_SHARE = 0.25
_WHITE = 254 / 255


def choose_crop(box: Tensor | None, *, random: bool) -> tuple[int, int]:
    """First row and column of the part of a query to show: random, or the middle.

    A part that loses the box is not taken: after some tries the part is centered on the box, as far as the query
    reaches.

    Args:
        box: box (4,) of the defect, or None.
        random: draw from PyTorch's generator.
    """
    if box is None:
        return _window(random=random)
    for _ in range(_TRIES if random else 1):
        top, left = _window(random=random)
        if shown_share(box, top, left) >= _LEAST_SHARE:
            return top, left
    middle = (box[:2] + box[2:]) / 2 - CROP_SIZE / 2
    left, top = middle.round().long().clamp(0, _LAST).tolist()
    return top, left


def shown_share(box: Tensor, top: int, left: int) -> float:
    """Share of a box's area that a part of the query shows."""
    sides = (_clipped(box, top, left)[2:] - _clipped(box, top, left)[:2]).clamp_min(0)
    return float(sides.prod() / (box[2:] - box[:2]).prod())


def box_in_crop(box: Tensor, top: int, left: int) -> Tensor:
    """Box (4,) in a part of the query: middle x, middle y, width, height, as shares of the part."""
    clipped = _clipped(box, top, left) / CROP_SIZE
    return torch.cat([(clipped[:2] + clipped[2:]) / 2, clipped[2:] - clipped[:2]])


def mirrored_box(box: Tensor) -> Tensor:
    """A box (4,) of middle and size in shares, in the image whose left and right are exchanged."""
    return torch.cat([1 - box[:1], box[1:]])


def random_light(image: Tensor, largest: float = 0.2) -> Tensor:
    """Change brightness and contrast of an image (3, H, W) on white by PyTorch's generator; white stays white.

    Were the background darkened too, it would count as the object.

    Args:
        image: RGB in [0, 1].
        largest: largest change of each.
    """
    contrast, brightness = (largest * (2 * torch.rand(2) - 1)).tolist()
    changed = ((1 + contrast) * image + brightness).clamp(0, 1)
    return torch.where(image.amin(0) >= _WHITE, image, changed)


def _window(*, random: bool) -> tuple[int, int]:
    if not random:
        return _LAST // 2, _LAST // 2
    top, left = torch.randint(0, _LAST + 1, (2,)).tolist()
    return top, left


def _clipped(box: Tensor, top: int, left: int) -> Tensor:
    """Box in pixels of a part, cut at its border."""
    return (box - box.new_tensor([left, top, left, top])).clamp(0, CROP_SIZE)
