# SPDX-License-Identifier: Apache-2.0
"""Tiles of images, the Gaussians that touch them, and how their pixels blend them."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

COARSE, MIDDLE, FINE = 32, 8, 4
"""Sides of tiles in pixels."""
_GROUPS = 8  # each adds its operations to the graph
FAINT = (0.5 / 255, 1.5 / 255)
"""Rasterizers leave out opacities below 1/255; runtimes must not differ about that, hence a slope."""
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
        colors: RGB, 1 and depth (N + 1, 5).
    """

    bounds: Tensor
    wide: Tensor
    narrow: Tensor
    colors: Tensor

    @property
    def nobody(self) -> int:
        """Index of the one that is nowhere."""
        return self.bounds.shape[1] - 1


class Tiles(NamedTuple):
    """Tiles (T) of one size by their upper left corners, and the Gaussians (T, n) that touch them."""

    left: Tensor
    top: Tensor
    members: Tensor


def splats_of(numbers: Float[Tensor, "n 12"], present: Bool[Tensor, " n"]) -> Splats:
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
    colors = torch.cat([numbers[:, 9:], torch.ones_like(z)[:, None], z[:, None]], 1)
    return Splats(torch.cat([bounds, nowhere], 1), wide, narrow, torch.cat([colors, torch.zeros_like(colors[:1])]))


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


def _compacted(kept: Bool[Tensor, "t p n"], members: Int[Tensor, "t 1 n"], room: int, nobody: int) -> Tensor:
    """Lists (T, p, room) of those members that are kept, in their order, filled up with nobody."""
    rank = kept.to(torch.int32).cumsum(-1)
    slot = torch.where(kept & (rank <= room), rank - 1, room).long()
    lists = torch.zeros_like(slot[..., :1]).expand(-1, -1, room + 1) + nobody
    return lists.scatter(-1, slot, members.expand_as(slot))[..., :room]


def split(splats: Splats, tiles: Tiles, pieces: int, side: int, room: int, *, exact: bool = False) -> Tiles:
    """Tiles cut into pieces, row by row, that keep the Gaussians which touch them; see ``touching``."""
    inside, corners = touching(splats, tiles, pieces, side, exact=exact)
    members = _compacted(inside, tiles.members[:, None], room, splats.nobody)
    return Tiles(*corners, members.flatten(0, 1))


def fullest_first(tiles: Tiles, count: int, room: int, nobody: int) -> Tiles:
    """Those tiles of each image that most Gaussians touch, in the order of how many do.

    Args:
        tiles: of all images.
        count: tiles an image.
        room: tiles an image that are kept.
        nobody: number of the Gaussian that is nowhere.
    """
    touch = (tiles.members < nobody).to(tiles.left.dtype).sum(1).unflatten(0, (-1, count))
    # runtimes must not differ about tiles that as many touch
    order = (count * touch - torch.arange(count, device=touch.device).to(touch.dtype)).topk(room, dim=1).indices
    rows = (order + torch.arange(order.shape[0], device=order.device)[:, None] * count).flatten()
    return Tiles(*(part.index_select(0, rows) for part in tiles))


def group_size(count: int) -> int:
    """Tiles in each group of so many, but for the last."""
    return math.ceil(count / _GROUPS)


def in_groups(tiles: Tiles, count: int, rooms: tuple[int, ...]) -> list[Tiles]:
    """Tiles of all images, the fullest first, in groups that have room for fewer and fewer Gaussians.

    Args:
        tiles: of all images.
        count: tiles an image.
        rooms: of each group.
    """
    size = group_size(count)
    groups = []
    for start, room in zip(range(0, count, size), rooms, strict=True):
        left, top, members = (part.unflatten(0, (-1, count))[:, start : start + size].flatten(0, 1) for part in tiles)
        groups.append(Tiles(left, top, members[:, :room]))
    return groups


def together(groups: list[Tensor], count: int, parts: int = 1) -> Tensor:
    """What has been made of the tiles of each group, image by image.

    Args:
        groups: made of the tiles that ``in_groups`` gives, along the first axis.
        count: tiles an image.
        parts: made of each tile.
    """
    size = group_size(count)
    lengths = [min(size, count - start) * parts for start in range(0, count, size)]
    split_up = [group.unflatten(0, (-1, length)) for group, length in zip(groups, lengths, strict=True)]
    return torch.cat(split_up, 1).flatten(0, 1)


def blending(splats: Splats, tiles: Tiles) -> tuple[Float[Tensor, "tp n"], Float[Tensor, "tp n"]]:
    """Opacities at the pixels of the finest tiles, and logarithms of what passes up to each Gaussian and through it."""
    rows = splats.narrow.index_select(1, tiles.members.flatten()).unflatten(1, (-1, tiles.members.shape[1]))
    middle = torch.stack([tiles.left, tiles.top])[:, :, None] + FINE / 2
    u, v, xx, xy, yy, opacity = torch.cat([rows[:2] - middle, rows[2:]]).unbind(0)
    constant = xx * u * u + xy * u * v + yy * v * v + opacity
    factors = torch.stack([constant, -2 * xx * u - xy * v, -2 * yy * v - xy * u, xx, xy, yy], 1)
    ticks = torch.arange(FINE, device=u.device).to(u.dtype) + 0.5 - FINE / 2
    x, y = ticks.expand(FINE, FINE).flatten(), ticks[:, None].expand(FINE, FINE).flatten()
    powers = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)
    # in two dimensions: with three, OpenVINO moves the numbers around between the operations
    alpha = torch.exp((powers @ factors).flatten(0, 1)).clamp(max=_ALPHA_MAX)
    alpha = alpha * ((alpha - FAINT[0]) / (FAINT[1] - FAINT[0])).clamp(0, 1)
    return alpha, _logarithm(1 - alpha).cumsum(1)


def blended(splats: Splats, tiles: Tiles) -> Float[Tensor, "t s s 5"]:
    """Sums over the Gaussians of weight times RGB, 1 and depth, for the pixels of the finest tiles."""
    alpha, passed = blending(splats, tiles)
    weight = torch.exp(passed) * alpha / (1 - alpha)
    colors = splats.colors.index_select(0, tiles.members.flatten()).unflatten(0, (-1, tiles.members.shape[1]))
    return (weight.unflatten(0, (-1, FINE * FINE)) @ colors).unflatten(1, (FINE, FINE))


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
