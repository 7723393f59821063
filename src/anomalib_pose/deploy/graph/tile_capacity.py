# SPDX-License-Identifier: Apache-2.0
"""Tile capacities: the maximum number of Gaussians in each part of an image, because a graph has fixed sizes.

This module has no twin: ``anomalib_pose.render.splat_tiles`` uses lists of any length. With the measured capacities,
images differ from those without a limit by less than 1e-4 on average and by less than 0.011 in any color.
"""

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
    blend_weights,
    group_size,
    image_tiles,
    sort_by_occupancy,
    split_tiles,
)

_OPAQUE = math.log(0.01)  # log transmittance; Gaussians behind a lower transmittance are invisible
_STEP = 16
_UNION_MARGIN = 1.03  # three views around a camera may see more together than a view and its two nearest views
_SLACK = 1.1  # a camera that is closer than the measured ones shows the object in more tiles


class TileCapacity(NamedTuple):
    """Maximum number of Gaussians in each part of an image. Beyond it, the farthest Gaussians are left out.

    Tiles are processed in groups, the fullest tiles first, because most tiles hold far fewer Gaussians than the fullest
    one.

    Args:
        image: Gaussians of the whole image.
        coarse: Gaussians of a tile of 32 pixels, for each group.
        middle: Gaussians of a tile of 8 pixels, for each group.
        fine: Gaussians of a tile of 4 pixels, for each group of tiles of 8 pixels.
        tiles: tiles of 8 pixels that show the object; beyond them, the emptiest tiles are left out.
    """

    image: int
    coarse: tuple[int, ...]
    middle: tuple[int, ...]
    fine: tuple[int, ...]
    tiles: int


class TileOccupancy(NamedTuple):
    """Number of Gaussians in the tiles of one image.

    Args:
        coarse: Gaussians that overlap each tile of 32 pixels, the fullest first.
        middle: Gaussians that overlap each tile of 8 pixels, the fullest first.
        fine: Gaussians that are visible in each tile of 4 pixels (T, n), for the T non-empty tiles of 8 pixels.
    """

    coarse: Int[Tensor, " c"]
    middle: Int[Tensor, " m"]
    fine: Int[Tensor, "t n"]


def tile_levels(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return, from the whole image to the finest tiles, the pieces along a side and the side of a piece in pixels.

    Args:
        size: height and width of the image in pixels.
    """
    across = math.ceil(max(size) / COARSE)
    return (across, COARSE), (COARSE // MIDDLE, MIDDLE), (MIDDLE // FINE, FINE)


def measure_occupancy(splats: Splats, size: tuple[int, int]) -> TileOccupancy:
    """Count the Gaussians in the tiles of one image.

    Args:
        splats: Gaussians of one image.
        size: height and width of the image in pixels.
    """
    (across, _), (pieces, _), (parts, _) = tile_levels(size)
    padding_index = splats.padding_index
    coarse = split_tiles(splats, image_tiles(splats, padding_index), across, COARSE, padding_index)
    coarse_counts = _counts(coarse, splats)
    most = max(1, int(coarse_counts.max()))
    middle = split_tiles(splats, coarse._replace(members=coarse.members[:, :most]), pieces, MIDDLE, most)
    middle = sort_by_occupancy(middle, len(middle.left), len(middle.left), padding_index)
    counts = _counts(middle, splats)
    most = max(1, int(counts.max()))
    occupied = Tiles(*(part[: int((counts > 0).sum())] for part in middle))
    occupied = occupied._replace(members=occupied.members[:, :most])
    fine = [
        _count_until_opaque(splats, split_tiles(splats, Tiles(*batch), parts, FINE, most, exact=True))
        for batch in zip(*(part.split(16) for part in occupied), strict=True)
    ]
    return TileOccupancy(
        coarse_counts.sort(descending=True).values,
        counts,
        torch.cat(fine).unflatten(0, (-1, parts**2)) if fine else counts.new_zeros(0, parts**2),
    )


def capacity_for(images: Sequence[TileOccupancy], union: int, gaussians: int) -> TileCapacity:
    """Compute a capacity that is enough for the given images.

    Args:
        images: occupancy of the images.
        union: maximum number of Gaussians that the views near one camera see together.
        gaussians: number of all Gaussians.
    """
    tiles = min(len(images[0].middle), math.ceil(_SLACK * max(1, *(len(image.fine) for image in images))))
    return TileCapacity(
        _rounded(math.ceil(_UNION_MARGIN * union), gaussians),
        _group_capacities([image.coarse for image in images], len(images[0].coarse), gaussians),
        _group_capacities([image.middle for image in images], tiles, gaussians),
        _group_capacities([image.fine.amax(1) for image in images], tiles, gaussians),
        tiles,
    )


def _group_capacities(images: Sequence[Int[Tensor, " t"]], tiles: int, gaussians: int) -> tuple[int, ...]:
    """Return, for each group, the occupancy of its fullest tile, also of tiles that a closer camera moves into it."""
    size = group_size(tiles)
    capacities = []
    for start in range(0, tiles, size):
        group = slice(math.floor(start / _SLACK), start + size)
        capacities.append(max((int(image[group].max()) for image in images if len(image[group])), default=1))
    return tuple(_rounded(capacity, gaussians) for capacity in capacities)


def _rounded(count: int, gaussians: int) -> int:
    """Round a count up to a multiple of 16, but at most to the number of all Gaussians."""
    return min(gaussians, _STEP * max(1, math.ceil(count / _STEP)))


def _counts(tiles: Tiles, splats: Splats) -> Int[Tensor, " t"]:
    """Count the Gaussians that overlap each tile."""
    return (tiles.members < splats.padding_index).sum(1)


def _count_until_opaque(splats: Splats, tiles: Tiles) -> Int[Tensor, " t"]:
    """Count the Gaussians, from the front, that are visible in the pixels of each of the finest tiles."""
    log_transmittance = blend_weights(splats, tiles)[1].unflatten(0, (-1, FINE**2))
    before = torch.cat([torch.zeros_like(log_transmittance[:, :, :1]), log_transmittance[:, :, :-1]], 2)
    present = (tiles.members < splats.padding_index)[:, None]
    return ((before > _OPAQUE) & present).any(1).sum(1)
