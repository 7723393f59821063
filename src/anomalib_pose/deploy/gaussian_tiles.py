# SPDX-License-Identifier: Apache-2.0
"""Tiles of images, the Gaussians that touch them, and how their pixels blend them."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

COARSE, MIDDLE, FINE = 32, 8, 4
"""Sides of tiles in pixels."""
FAINT = (0.5 / 255, 1.5 / 255)
"""Rasterisers leave out opacities below 1/255; runtimes must not differ about that, hence a slope."""
REACH = math.log(255.0)
_ALPHA_MAX = 0.999
_HALF_TILE = 2.0
_NOWHERE = 1e4
_TRANSPARENT = -20.0


class Splats(NamedTuple):
    """Gaussians on B images, N = B V, those of an image by depth, and a last one that is nowhere.

    Args:
        bounds: left, right, upper and lower end in pixels (4, N + 1).
        wide: column, row, and factors of xx, xy, yy and 1 in the exponent of a Gaussian as wide as it is on the image
            and a tile together (6, N + 1).
        narrow: the same as it is on the image (6, N + 1).
        colours: RGB, 1 and depth (N + 1, 5).
    """

    bounds: Tensor
    wide: Tensor
    narrow: Tensor
    colours: Tensor

    @property
    def nobody(self) -> int:
        """Index of the one that is nowhere."""
        return self.bounds.shape[1] - 1


class Tiles(NamedTuple):
    """Tiles (T) of one size by their upper left corners, and the Gaussians (T, n) that touch them."""

    left: Tensor
    top: Tensor
    members: Tensor


def splats_of(numbers: Float[Tensor, "n 12"], present: Bool[Tensor, "n"]) -> Splats:
    """Gaussians as tiles find and blend them.

    Args:
        numbers: column, row, covariance xx, xy and yy, log opacity, half width and height, depth, and RGB.
        present: whether they are to be drawn.
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
    colours = torch.cat([numbers[:, 9:], torch.ones_like(z)[:, None], z[:, None]], 1)
    return Splats(torch.cat([bounds, nowhere], 1), wide, narrow, torch.cat([colours, torch.zeros_like(colours[:1])]))


def _conic(xx: Tensor, xy: Tensor, yy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of xx, xy and yy in a Gaussian's exponent from its covariance."""
    factor = -0.5 / (xx * yy - xy.square())
    return yy * factor, -2 * xy * factor, xx * factor


def _exponent(rows: Float[Tensor, "6 t 1 n"], x: Float[Tensor, "*t p 1"], y: Float[Tensor, "*t p 1"]) -> Tensor:
    """Logarithms of the opacity (T, P, n) that Gaussians have at P points of each tile.

    Args:
        rows: see ``Splats``.
        x: columns in pixels.
        y: rows in pixels.
    """
    u, v, xx, xy, yy, opacity = rows.unbind(0)
    u, v = x - u, y - v
    return xx * u * u + xy * u * v + yy * v * v + opacity


def whole_images(splats: Splats, room: int) -> Tiles:
    """Every image as one tile."""
    members = torch.arange(splats.nobody, device=splats.bounds.device).unflatten(0, (-1, room))
    corner = torch.zeros_like(members[:, 0]).to(splats.bounds.dtype)
    return Tiles(corner, corner, members)


def touching(
    splats: Splats, tiles: Tiles, pieces: int, side: int, *, exact: bool = False
) -> tuple[Bool[Tensor, "t p n"], tuple[Tensor, Tensor]]:
    """Which of their tiles' Gaussians touch the pieces that tiles are split into, and the pieces' corners.

    Args:
        splats: Gaussians.
        tiles: tiles.
        pieces: along each side of a tile.
        side: of a piece in pixels.
        exact: by the ellipse, not by the rectangle around it.
    """
    steps = torch.arange(pieces, device=splats.bounds.device).to(splats.bounds.dtype) * side
    left = (tiles.left[:, None, None] + steps[None, None]).expand(-1, pieces, -1).flatten(1)
    top = (tiles.top[:, None, None] + steps[None, :, None]).expand(-1, -1, pieces).flatten(1)
    count = tiles.members.shape[1]
    west, east, north, south = splats.bounds.index_select(1, tiles.members.flatten()).unflatten(1, (-1, 1, count))
    x, y = left[:, :, None], top[:, :, None]
    inside = (west < x + side) & (east > x) & (north < y + side) & (south > y)
    if exact:
        rows = splats.wide.index_select(1, tiles.members.flatten()).unflatten(1, (-1, 1, count))
        inside = inside & (_exponent(rows, x + side / 2, y + side / 2) > -REACH)
    return inside, (left.flatten(), top.flatten())


def compacted(
    kept: Bool[Tensor, "*s n"], values: Int[Tensor, "*#s n"], room: int, filler: int
) -> tuple[Int[Tensor, "*s r"], Int[Tensor, "*s n"]]:
    """Lists of the values that are kept, in their order.

    Args:
        kept: which.
        values: of each list.
        room: length of the lists; what does not fit is left out.
        filler: fills the lists up.

    Returns:
        The lists, and each value's place in its list; ``room`` where it is not in it.
    """
    rank = kept.to(torch.int32).cumsum(-1)
    slot = torch.where(kept & (rank <= room), rank - 1, room).long()
    lists = torch.zeros_like(slot[..., :1]).expand(*[-1] * (kept.ndim - 1), room + 1) + filler
    return lists.scatter(-1, slot, values.expand_as(slot))[..., :room], slot


def split(splats: Splats, tiles: Tiles, pieces: int, side: int, room: int, *, exact: bool = False) -> Tiles:
    """Tiles cut into pieces, row by row, that keep the Gaussians which touch them; see ``touching``."""
    inside, corners = touching(splats, tiles, pieces, side, exact=exact)
    members, _ = compacted(inside, tiles.members[:, None], room, splats.nobody)
    return Tiles(*corners, members.flatten(0, 1))


def occupied_tiles(tiles: Tiles, count: int, room: int, nobody: int) -> tuple[Tiles, Int[Tensor, "bt"]]:
    """Tiles that Gaussians touch, as many of each image as there is room for, and where each tile has gone.

    Args:
        tiles: of all images.
        count: tiles an image.
        room: of them that are kept.
        nobody: number of the Gaussian that is nowhere.

    Returns:
        The tiles that are kept, and each tile's index among them; their number for those that are not.
    """
    occupied = (tiles.members[:, 0] < nobody).unflatten(0, (-1, count))
    everyone = tiles.members.shape[0]
    numbers = torch.arange(everyone, device=occupied.device).unflatten(0, (-1, count))
    chosen, slot = compacted(occupied, numbers, room, everyone)
    chosen = chosen.flatten()
    empty = torch.zeros_like(tiles.members[:1]) + nobody
    left, top = (torch.cat([part, torch.zeros_like(part[:1])]).index_select(0, chosen) for part in tiles[:2])
    offset = torch.arange(slot.shape[0], device=slot.device)[:, None] * room
    place = torch.where(slot < room, slot + offset, chosen.shape[0]).flatten()
    return Tiles(left, top, torch.cat([tiles.members, empty]).index_select(0, chosen)), place


def blending(splats: Splats, tiles: Tiles) -> tuple[Float[Tensor, "t p n"], Float[Tensor, "t p n"]]:
    """Opacities at the pixels of the finest tiles, and logarithms of what passes up to each Gaussian and through it."""
    rows = splats.narrow.index_select(1, tiles.members.flatten()).unflatten(1, (-1, 1, tiles.members.shape[1]))
    corner = torch.stack([tiles.left, tiles.top])[:, :, None, None]
    rows = torch.cat([rows[:2] - corner, rows[2:]])
    centres = torch.arange(FINE, device=rows.device).to(rows.dtype) + 0.5
    x, y = centres.expand(FINE, FINE).reshape(-1, 1), centres[:, None].expand(FINE, FINE).reshape(-1, 1)
    alpha = torch.exp(_exponent(rows, x, y)).clamp(max=_ALPHA_MAX)
    alpha = alpha * ((alpha - FAINT[0]) / (FAINT[1] - FAINT[0])).clamp(0, 1)
    return alpha, _logarithm(1 - alpha).cumsum(2)


def blended(splats: Splats, tiles: Tiles) -> Float[Tensor, "t s s 5"]:
    """Sums over the Gaussians of weight times RGB, 1 and depth, for the pixels of the finest tiles."""
    alpha, passed = blending(splats, tiles)
    weight = torch.exp(passed) * alpha / (1 - alpha)
    colours = splats.colours.index_select(0, tiles.members.flatten()).unflatten(0, (-1, tiles.members.shape[1]))
    return (weight @ colours).unflatten(1, (FINE, FINE))


def _logarithm(share: Tensor) -> Tensor:
    """Logarithm of numbers from 0.001 to 1 to six digits: OpenVINO takes its own for one number at a time.

    The series of artanh, of the eighth root.
    """
    root = share.sqrt().sqrt().sqrt()
    ratio = (root - 1) / (root + 1)
    square = ratio * ratio
    return 16 * ratio * (1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11)))))


def joined(tiles: Float[Tensor, "tp s s c"], pieces: int) -> Float[Tensor, "t s2 s2 c"]:
    """Tiles put together from their pieces."""
    return tiles.unflatten(0, (-1, pieces, pieces)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
