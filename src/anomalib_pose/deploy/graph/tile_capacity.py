# SPDX-License-Identifier: Apache-2.0
"""How many Gaussians parts of an image have room for: graphs know no lists of any length."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from anomalib_pose.deploy.graph.gaussian_tiles import (
    COARSE,
    FINE,
    MIDDLE,
    Splats,
    Tiles,
    blending,
    fullest_first,
    group_size,
    split,
    whole_images,
)

_OPAQUE = math.log(0.01)  # what lies behind this is not missed
_STEP = 16
_MORE = 1.03  # three views around a camera may see more together than a view and its nearest two
_SLACK = 1.1  # a camera that is closer than those that were measured shows the object in more tiles


class Room(NamedTuple):
    """How many Gaussians parts of an image have room for. Of more, those farthest away are not drawn.

    Tiles are taken in groups, those that most Gaussians touch first, for most of them hold far fewer than the fullest.

    Args:
        image: of the whole image.
        coarse: of a tile of 32 pixels, for each group.
        middle: of a tile of 8 pixels, for each group.
        fine: of a tile of 4 pixels, for each group of tiles of 8.
        tiles: tiles of 8 pixels that show the object; of more, the emptiest are not drawn.
    """

    image: int
    coarse: tuple[int, ...]
    middle: tuple[int, ...]
    fine: tuple[int, ...]
    tiles: int


class Filled(NamedTuple):
    """How many Gaussians an image takes.

    Args:
        coarse: those that touch each tile of 32 pixels, the fullest first.
        middle: those that touch each tile of 8 pixels, the fullest first.
        fine: those that the pixels of each of its tiles of 4 show (T, n), for the tiles of 8 that hold any.
    """

    coarse: Int[Tensor, " c"]
    middle: Int[Tensor, " m"]
    fine: Int[Tensor, "t n"]


def levels(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Pieces along a side that tiles are split into, and their sides, from the whole image to the finest.

    Args:
        size: height and width of the image in pixels.
    """
    whole = math.ceil(max(size) / COARSE)
    return (whole, COARSE), (COARSE // MIDDLE, MIDDLE), (MIDDLE // FINE, FINE)


def filled(splats: Splats, size: tuple[int, int]) -> Filled:
    """What one image takes.

    Args:
        splats: of one image.
        size: its height and width in pixels.
    """
    (whole, _), (pieces, _), (parts, _) = levels(size)
    coarse = split(splats, whole_images(splats, splats.nobody), whole, COARSE, splats.nobody)
    touching = _counts(coarse, splats)
    most = max(1, int(touching.max()))
    middle = split(splats, coarse._replace(members=coarse.members[:, :most]), pieces, MIDDLE, most)
    middle = fullest_first(middle, len(middle.left), len(middle.left), splats.nobody)
    counts = _counts(middle, splats)
    most = max(1, int(counts.max()))
    shown = Tiles(*(part[: int((counts > 0).sum())] for part in middle))
    fine = [
        _count_until_opaque(splats, split(splats, Tiles(*some), parts, FINE, most, exact=True))
        for some in zip(*(part.split(16) for part in shown._replace(members=shown.members[:, :most])), strict=True)
    ]
    return Filled(
        touching.sort(descending=True).values,
        counts,
        torch.cat(fine).unflatten(0, (-1, parts**2)) if fine else counts.new_zeros(0, parts**2),
    )


def room_for(images: Sequence[Filled], together: int, gaussians: int) -> Room:
    """Room that is enough for some images.

    Args:
        images: what they take.
        together: the most Gaussians that views near to one camera see, all together.
        gaussians: how many there are.
    """
    tiles = min(len(images[0].middle), math.ceil(_SLACK * max(1, *(len(image.fine) for image in images))))
    return Room(
        _rounded(math.ceil(_MORE * together), gaussians),
        _group_room([image.coarse for image in images], len(images[0].coarse), gaussians),
        _group_room([image.middle for image in images], tiles, gaussians),
        _group_room([image.fine.amax(1) for image in images], tiles, gaussians),
        tiles,
    )


def _group_room(images: Sequence[Int[Tensor, " t"]], tiles: int, gaussians: int) -> tuple[int, ...]:
    """The most that any of a group's tiles holds, or one before it that a closer camera would move into it."""
    size = group_size(tiles)
    found = []
    for start in range(0, tiles, size):
        some = slice(math.floor(start / _SLACK), start + size)
        found.append(max((int(image[some].max()) for image in images if len(image[some])), default=1))
    return tuple(_rounded(most, gaussians) for most in found)


def _rounded(most: int, gaussians: int) -> int:
    return min(gaussians, _STEP * max(1, math.ceil(most / _STEP)))


def _counts(tiles: Tiles, splats: Splats) -> Int[Tensor, " t"]:
    """How many Gaussians touch each tile."""
    return (tiles.members < splats.nobody).sum(1)


def _count_until_opaque(splats: Splats, tiles: Tiles) -> Int[Tensor, " t"]:
    """How many Gaussians, from the front, the pixels of each of the finest tiles show."""
    passed = blending(splats, tiles)[1].unflatten(0, (-1, FINE**2))
    ahead = torch.cat([torch.zeros_like(passed[:, :, :1]), passed[:, :, :-1]], 2)
    present = (tiles.members < splats.nobody)[:, None]
    return ((ahead > _OPAQUE) & present).any(1).sum(1)
