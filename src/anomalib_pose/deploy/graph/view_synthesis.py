# SPDX-License-Identifier: Apache-2.0
"""Views of an object from where no view was rendered, by warping those nearby."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.maps import largest_around
from anomalib_pose.deploy.graph.alignment import View, project, unproject
from anomalib_pose.deploy.graph.resample import sample

_NOWHERE = 10.0  # units of the distance to the object
_TYPICAL = 1.0
_REACH = 9  # pixels beyond the object that take the depth of its nearest surface
_HIDDEN = 0.01  # a surface so much farther than what a view shows is hidden from it
_SEEN = 0.05  # weight below which a pixel is as good as unseen
_FIRST = 0.5


class Synthesis(NamedTuple):
    """What cameras see of the object, drawn or according to views nearby.

    Args:
        rgb: color over white (C, 3, H, W).
        alpha: opacity of the object (C, H, W).
        known: how far the views can tell what is seen (C, H, W), in [0, 1]; 1 where it is drawn.
        depth: of the nearest surface along the cameras' optical axes (C, H, W).
    """

    rgb: Tensor
    alpha: Tensor
    known: Tensor
    depth: Tensor


def splat_depth(
    view: View, motion: Float[Tensor, "b 4 4"], intrinsics: Float[Tensor, "b 4"], neighbors: int
) -> Float[Tensor, "c h w"]:
    """Depth that a camera sees: surface points of several views, the nearest at each pixel; 0 where there is none.

    Each point covers the four pixels around it. What that adds to the outline does no harm: colors are looked up where
    the pixel's own ray meets the depth.

    Args:
        view: views, ``neighbors`` of them for each camera.
        motion: views' camera frames to the camera's.
        intrinsics: (fx, fy, cx, cy) of all.
        neighbors: views a camera.
    """
    height, width = view.depth.shape[1:]
    points, uv = project(motion, unproject(view.depth, intrinsics).flatten(2), intrinsics)
    left, top = torch.floor(uv - 0.5).unbind(1)
    z = torch.where(view.alpha.flatten(1) > 0.5, points[:, 2], _NOWHERE)
    places, depths = [], []
    for right in (0, 1):
        for down in (0, 1):
            column, row = left + right, top + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            places.append(place)
            depths.append(torch.where(inside, z, _NOWHERE))
    index = torch.cat(places, 1).unflatten(0, (-1, neighbors)).flatten(1).long()
    source = torch.cat(depths, 1).unflatten(0, (-1, neighbors)).flatten(1)
    buffer = torch.full_like(source[:, : height * width], _NOWHERE)
    nearest = buffer.scatter_reduce(1, index, source, "amin", include_self=True).unflatten(1, (height, width))
    return torch.where(nearest < _NOWHERE, nearest, 0)


def fill_depth(depth: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Depth everywhere: pixels without take the nearest surface around, those far from any the typical distance."""
    for size in (3, 2 * _REACH + 1):
        near = -largest_around(torch.where(depth > 0, -depth, -_NOWHERE), size)
        depth = torch.where(depth > 0, depth, torch.where(near < _NOWHERE, near, 0))
    return torch.where(depth > 0, depth, _TYPICAL)


def synthesize(
    view: View,
    motion: Float[Tensor, "b 4 4"],
    back: Float[Tensor, "b 4 4"],
    intrinsics: Float[Tensor, "b 4"],
    count: int,
) -> Synthesis:
    """What cameras see.

    Args:
        view: views, ``count`` of them for each camera, the nearest first.
        motion: views' camera frames to the cameras'.
        back: the inverse.
        intrinsics: (fx, fy, cx, cy) of all.
        count: views a camera.
    """
    splats = splat_depth(view, motion, intrinsics, count)
    covered = _widened(_closed((splats > 0).to(splats.dtype)))
    surface = fill_depth(splats)
    depth = surface.repeat_interleave(count, 0)
    points, uv = project(back, unproject(depth, intrinsics).flatten(2), intrinsics)
    shape = depth.shape[1:]
    uv = uv.unflatten(2, shape)
    found = sample(torch.cat([view.rgb, view.alpha[:, None], view.depth[:, None]], 1), uv)
    hidden = torch.relu(points[:, 2].unflatten(1, shape) - found[:, 4]) / _HIDDEN
    order = torch.arange(count, dtype=depth.dtype, device=depth.device)[None, :, None, None] * _FIRST
    inside = _inside(uv).unflatten(0, (-1, count))
    seen = torch.exp(-hidden.square()).unflatten(0, (-1, count)) * inside
    weight = seen * torch.exp(-order) + 1e-4
    rgba = (weight[:, :, None] * found[:, :4].unflatten(0, (-1, count))).sum(1) / weight.sum(1)[:, None]
    # Where no surface point falls there is background, whatever the views show at the depth of the nearest surface.
    nothing = torch.tensor([1.0, 1.0, 1.0, 0.0]).to(rgba)[:, None, None]
    rgba = nothing + covered[:, None] * (rgba - nothing)
    known = torch.maximum((seen.amax(1) / _SEEN).clamp(max=1), (1 - covered) * inside.amax(1))
    return Synthesis(rgba[:, :3], rgba[:, 3], known, surface)


def _inside(uv: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b h w"]:
    """1 where coordinates lie in an image of the same size, which says nothing of what is beyond."""
    u, v = uv.unbind(1)
    return ((u > 0) & (u < uv.shape[3]) & (v > 0) & (v < uv.shape[2])).to(uv.dtype)


def _closed(mask: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """The mask with cracks of up to two pixels closed."""
    return -largest_around(-largest_around(mask, 3), 3)


def _widened(mask: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """The mask with an edge that falls off over the three pixels around it.

    A splat is a pixel off here and there. Beyond the outline the views show the background themselves; a sharp edge
    would make much of a pixel that a surface point just reaches in one runtime and misses in another.
    """
    return functional.avg_pool2d(largest_around(mask, 3)[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
