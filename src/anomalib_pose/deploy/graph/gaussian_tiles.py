# SPDX-License-Identifier: Apache-2.0
"""Image tiles, the Gaussians that overlap them, and alpha blending of their pixels.

Twin: ``anomalib_pose.render.splat_tiles``, which sorts Gaussians into tiles and blends them. The tests compare the
whole rasterizer with its twin, see ``gaussian_rasterizer``, and the logarithm that blending uses with ``torch.log`` (to
a relative 1e-5).

The number of Gaussians in a tile depends on the data, but a graph has fixed sizes. So each tile has a capacity, and
free entries hold a padding index, which refers to a Gaussian that overlaps no tile.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

COARSE, MIDDLE, FINE = 32, 8, 4
"""Sides of tiles in pixels."""
_GROUPS = 8  # the operations of each group make the graph larger
FAINT = (0.5 / 255, 1.5 / 255)
"""Opacities between which a Gaussian fades in.

Rasterizers leave opacities below 1/255 out. With a gradual limit, runtimes do not differ for opacities near the limit.
"""
REACH = math.log(255.0)
_ALPHA_MAX = 0.999
_HALF_TILE = 2.0
_NOWHERE = 1e4
_TRANSPARENT = -20.0


class Splats(NamedTuple):
    """Gaussians on B images: N = B V of them, sorted by depth in each image, and a padding Gaussian outside all images.

    Args:
        bounds: left, right, upper and lower end in pixels (4, N + 1).
        wide: column, row, and the coefficients of xx, xy, yy and 1 in the exponent of the Gaussian, convolved with a
            tile (6, N + 1).
        narrow: the same for the Gaussian alone (6, N + 1).
        colors: RGB, 1 and depth (N + 1, 5).
    """

    bounds: Tensor
    wide: Tensor
    narrow: Tensor
    colors: Tensor

    @property
    def padding_index(self) -> int:
        """Index of the padding Gaussian."""
        return self.bounds.shape[1] - 1


class Tiles(NamedTuple):
    """Tiles of one size.

    Args:
        left: column of the upper left corner in pixels (T).
        top: row of the upper left corner in pixels (T).
        members: indices of the Gaussians that overlap each tile (T, n), filled up with the padding index.
    """

    left: Tensor
    top: Tensor
    members: Tensor


def make_splats(numbers: Float[Tensor, "n 12"], present: Bool[Tensor, " n"]) -> Splats:
    """Prepare projected Gaussians for tiling and blending.

    Args:
        numbers: column, row, covariance xx, xy and yy, log opacity, half width and height, depth, and RGB.
        present: whether a Gaussian is to be rasterized.
    """
    u, v, xx, xy, yy, opacity, half_width, half_height, z = numbers[:, :9].unbind(1)
    half_width = torch.where(present, half_width, -_NOWHERE)
    bounds = torch.stack([u - half_width, u + half_width, v - half_height, v + half_height])
    nowhere = bounds.new_tensor([_NOWHERE, -_NOWHERE, _NOWHERE, -_NOWHERE])[:, None]
    transparent = bounds.new_tensor([0.0, 0.0, 0.0, 0.0, 0.0, _TRANSPARENT])[:, None]
    wide, narrow = (
        torch.cat([torch.stack([u, v, *_conic(xx + blur, xy, yy + blur), opacity]), transparent], 1)
        for blur in (_HALF_TILE, 0.0)
    )
    colors = torch.cat([numbers[:, 9:], torch.ones_like(z)[:, None], z[:, None]], 1)
    return Splats(torch.cat([bounds, nowhere], 1), wide, narrow, torch.cat([colors, torch.zeros_like(colors[:1])]))


def _conic(xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the coefficients of xx, xy and yy in a Gaussian's exponent from its covariance."""
    factor = -0.5 / (xx * yy - xy.square())
    return yy * factor, -2 * xy * factor, xx * factor


def _exponent(rows: Float[Tensor, "6 t 1 n"], x: Float[Tensor, "*t p 1"], y: Float[Tensor, "*t p 1"]) -> Tensor:
    """Compute the log opacity (T, P, n) of Gaussians at P points of each tile.

    Args:
        rows: see ``Splats``.
        x: columns in pixels.
        y: rows in pixels.
    """
    u, v, xx, xy, yy, opacity = rows.unbind(0)
    u, v = x - u, y - v
    return xx * u * u + xy * u * v + yy * v * v + opacity


def image_tiles(splats: Splats, count: int) -> Tiles:
    """Return each image as one tile.

    Args:
        splats: Gaussians of all images.
        count: Gaussians in each image.
    """
    members = torch.arange(splats.padding_index, device=splats.bounds.device).unflatten(0, (-1, count))
    corner = torch.zeros_like(members[:, 0]).to(splats.bounds.dtype)
    return Tiles(corner, corner, members)


def find_overlaps(
    splats: Splats, tiles: Tiles, pieces: int, side: int, *, exact: bool = False
) -> tuple[Bool[Tensor, "t p n"], tuple[Tensor, Tensor]]:
    """Divide tiles into pieces and find which of the tile's Gaussians overlap each piece.

    Args:
        splats: Gaussians.
        tiles: tiles.
        pieces: pieces along each side of a tile.
        side: side of a piece in pixels.
        exact: test the ellipse of a Gaussian, not the rectangle around it.

    Returns:
        Whether each Gaussian overlaps each piece, and the columns and rows of the pieces' corners.
    """
    steps = torch.arange(pieces, device=splats.bounds.device).to(splats.bounds.dtype) * side
    left = (tiles.left[:, None, None] + steps[None, None]).expand(-1, pieces, -1).flatten(1)
    top = (tiles.top[:, None, None] + steps[None, :, None]).expand(-1, -1, pieces).flatten(1)
    count = tiles.members.shape[1]
    west, east, north, south = splats.bounds.index_select(1, tiles.members.flatten()).unflatten(1, (-1, 1, count))
    x, y = left[:, :, None], top[:, :, None]
    overlaps = (west < x + side) & (east > x) & (north < y + side) & (south > y)
    if exact:
        rows = splats.wide.index_select(1, tiles.members.flatten()).unflatten(1, (-1, 1, count))
        overlaps = overlaps & (_exponent(rows, x + side / 2, y + side / 2) > -REACH)
    return overlaps, (left.flatten(), top.flatten())


def _compact(selected: Bool[Tensor, "t p n"], members: Int[Tensor, "t 1 n"], capacity: int, padding: int) -> Tensor:
    """Return lists (T, p, capacity) of the selected members in their order, filled up with the padding index."""
    rank = selected.to(torch.int32).cumsum(-1)
    slot = torch.where(selected & (rank <= capacity), rank - 1, capacity).long()
    lists = torch.zeros_like(slot[..., :1]).expand(-1, -1, capacity + 1) + padding
    return lists.scatter(-1, slot, members.expand_as(slot))[..., :capacity]


def split_tiles(splats: Splats, tiles: Tiles, pieces: int, side: int, capacity: int, *, exact: bool = False) -> Tiles:
    """Split tiles into pieces, row by row, each with the Gaussians that overlap it.

    Args:
        splats: see ``find_overlaps``.
        tiles: see ``find_overlaps``.
        pieces: see ``find_overlaps``.
        side: see ``find_overlaps``.
        capacity: maximum number of Gaussians in a piece; the farthest ones beyond it are left out.
        exact: see ``find_overlaps``.
    """
    overlaps, corners = find_overlaps(splats, tiles, pieces, side, exact=exact)
    members = _compact(overlaps, tiles.members[:, None], capacity, splats.padding_index)
    return Tiles(*corners, members.flatten(0, 1))


def sort_by_occupancy(tiles: Tiles, count: int, capacity: int, padding_index: int) -> Tiles:
    """Return the fullest tiles of each image, sorted by decreasing number of Gaussians.

    Args:
        tiles: tiles of all images.
        count: tiles of each image.
        capacity: tiles of each image that are returned.
        padding_index: index of the padding Gaussian.
    """
    occupancy = (tiles.members < padding_index).to(tiles.left.dtype).sum(1).unflatten(0, (-1, count))
    # ties are broken by the position, so that all runtimes return the same order
    ranks = torch.arange(count, device=occupancy.device).to(occupancy.dtype)
    order = (count * occupancy - ranks).topk(capacity, dim=1).indices
    rows = (order + torch.arange(order.shape[0], device=order.device)[:, None] * count).flatten()
    return Tiles(*(part.index_select(0, rows) for part in tiles))


def group_size(count: int) -> int:
    """Return the number of tiles in each group but the last.

    Args:
        count: tiles in all groups together.
    """
    return math.ceil(count / _GROUPS)


def split_into_groups(tiles: Tiles, count: int, capacities: tuple[int, ...]) -> list[Tiles]:
    """Split the tiles of all images into groups with their own capacities.

    Args:
        tiles: tiles of all images, in each image the fullest first.
        count: tiles of each image.
        capacities: maximum number of Gaussians in a tile, for each group.
    """
    size = group_size(count)
    groups = []
    for start, capacity in zip(range(0, count, size), capacities, strict=True):
        left, top, members = (part.unflatten(0, (-1, count))[:, start : start + size].flatten(0, 1) for part in tiles)
        groups.append(Tiles(left, top, members[:, :capacity]))
    return groups


def merge_groups(groups: list[Tensor], count: int, parts: int = 1) -> Tensor:
    """Concatenate results of ``split_into_groups``, image by image.

    Args:
        groups: results for the tiles of each group, along the first axis.
        count: tiles of each image.
        parts: results for each tile.
    """
    size = group_size(count)
    lengths = [min(size, count - start) * parts for start in range(0, count, size)]
    per_image = [group.unflatten(0, (-1, length)) for group, length in zip(groups, lengths, strict=True)]
    return torch.cat(per_image, 1).flatten(0, 1)


def blend_weights(splats: Splats, tiles: Tiles) -> tuple[Float[Tensor, "tp n"], Float[Tensor, "tp n"]]:
    """Compute the opacity and the log transmittance of each Gaussian at the pixels of the finest tiles.

    Args:
        splats: Gaussians.
        tiles: tiles of ``FINE`` pixels.

    Returns:
        Opacities, and the log transmittance of all Gaussians up to and including each one.
    """
    rows = splats.narrow.index_select(1, tiles.members.flatten()).unflatten(1, (-1, tiles.members.shape[1]))
    center = torch.stack([tiles.left, tiles.top])[:, :, None] + FINE / 2
    u, v, xx, xy, yy, opacity = torch.cat([rows[:2] - center, rows[2:]]).unbind(0)
    constant = xx * u * u + xy * u * v + yy * v * v + opacity
    factors = torch.stack([constant, -2 * xx * u - xy * v, -2 * yy * v - xy * u, xx, xy, yy], 1)
    ticks = torch.arange(FINE, device=u.device).to(u.dtype) + 0.5 - FINE / 2
    x, y = ticks.expand(FINE, FINE).flatten(), ticks[:, None].expand(FINE, FINE).flatten()
    powers = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)
    # a tensor of two dimensions: with three, OpenVINO reorders memory between the operations
    alpha = torch.exp((powers @ factors).flatten(0, 1)).clamp(max=_ALPHA_MAX)
    alpha = alpha * ((alpha - FAINT[0]) / (FAINT[1] - FAINT[0])).clamp(0, 1)
    return alpha, _log(1 - alpha).cumsum(1)


def blend(splats: Splats, tiles: Tiles) -> Float[Tensor, "t s s 5"]:
    """Sum weight times RGB, 1 and depth over the Gaussians, for the pixels of the finest tiles.

    Args:
        splats: Gaussians.
        tiles: tiles of ``FINE`` pixels.
    """
    alpha, log_transmittance = blend_weights(splats, tiles)
    weight = torch.exp(log_transmittance) * alpha / (1 - alpha)
    colors = splats.colors.index_select(0, tiles.members.flatten()).unflatten(0, (-1, tiles.members.shape[1]))
    return (weight.unflatten(0, (-1, FINE * FINE)) @ colors).unflatten(1, (FINE, FINE))


def _log(values: Tensor) -> Tensor:
    """Compute the logarithm of numbers from 0.001 to 1 to six digits, by the series of artanh of the eighth root.

    OpenVINO computes its own logarithm one number at a time, which is slow.
    """
    root = values.sqrt().sqrt().sqrt()
    ratio = (root - 1) / (root + 1)
    square = ratio * ratio
    return 16 * ratio * (1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11)))))


def merge_tiles(tiles: Float[Tensor, "tp s s c"], pieces: int) -> Float[Tensor, "t s2 s2 c"]:
    """Assemble tiles from their pieces.

    Args:
        tiles: pieces, row by row.
        pieces: pieces along each side of a tile.
    """
    return tiles.unflatten(0, (-1, pieces, pieces)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
