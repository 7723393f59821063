# SPDX-License-Identifier: Apache-2.0
"""View synthesis: images of an object from a new camera, by warping nearby rendered views with their depth.

Twin: ``anomalib_pose.scene.Scene.render`` at the new camera. Of the pixels with view support, less than 1 % differ by
more than 0.2 in color; on the object the mean difference is below 0.03. The mean difference in opacity is below 0.02,
and the median difference in depth below 0.03 scene units.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.maps import largest_around
from anomalib_pose.deploy.graph.alignment import DepthViews, project, unproject
from anomalib_pose.deploy.graph.resample import sample

_FAR_AWAY = 10.0  # in units of the distance to the object
_TYPICAL_DEPTH = 1.0
_REACH = 9  # pixels beyond the object that take the depth of its nearest surface
_OCCLUDED = 0.01  # a surface that lies this much behind the surface in a view is hidden from that view
_SUPPORTED = 0.05  # visibility in a view from which a pixel counts as fully supported
_DECAY = 0.5  # logarithm of the ratio between the weights of two successive views


class GraphRendering(NamedTuple):
    """Images of the object from C cameras, rasterized or synthesized from nearby views.

    Args:
        rgb: color over white (C, 3, H, W).
        alpha: opacity of the object (C, H, W).
        support: view support in [0, 1] (C, H, W): 0 where no nearby view shows the surface, 1 where the object is
            rasterized.
        depth: depth of the nearest surface along the optical axis (C, H, W).
    """

    rgb: Tensor
    alpha: Tensor
    support: Tensor
    depth: Tensor


def splat_depth(
    view: DepthViews, motion: Float[Tensor, "b 4 4"], pinhole: Float[Tensor, "b 4"], neighbors: int
) -> Float[Tensor, "c h w"]:
    """Compute the depth that a camera sees: the nearest surface point of several views at each pixel, 0 without one.

    Each point covers the four pixels around it. This widens the outline, which does no harm: colors are looked up where
    the ray of the pixel meets the depth.

    Args:
        view: views, ``neighbors`` of them for each camera.
        motion: transforms from the views' camera frames to the camera's frame.
        pinhole: (fx, fy, cx, cy) of all views and cameras.
        neighbors: views for each camera.
    """
    height, width = view.depth.shape[1:]
    points, uv = project(motion, unproject(view.depth, pinhole).flatten(2), pinhole)
    left, top = torch.floor(uv - 0.5).unbind(1)
    z = torch.where(view.alpha.flatten(1) > 0.5, points[:, 2], _FAR_AWAY)
    indices, depths = [], []
    for right in (0, 1):
        for down in (0, 1):
            column, row = left + right, top + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            indices.append(row.clamp(0, height - 1) * width + column.clamp(0, width - 1))
            depths.append(torch.where(inside, z, _FAR_AWAY))
    index = torch.cat(indices, 1).unflatten(0, (-1, neighbors)).flatten(1).long()
    source = torch.cat(depths, 1).unflatten(0, (-1, neighbors)).flatten(1)
    buffer = torch.full_like(source[:, : height * width], _FAR_AWAY)
    nearest = buffer.scatter_reduce(1, index, source, "amin", include_self=True).unflatten(1, (height, width))
    return torch.where(nearest < _FAR_AWAY, nearest, 0)


def fill_depth(depth: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Fill pixels without depth with the nearest surface around them, or with the typical distance far from any.

    Args:
        depth: 0 where there is no surface.
    """
    for size in (3, 2 * _REACH + 1):
        near = -largest_around(torch.where(depth > 0, -depth, -_FAR_AWAY), size)
        depth = torch.where(depth > 0, depth, torch.where(near < _FAR_AWAY, near, 0))
    return torch.where(depth > 0, depth, _TYPICAL_DEPTH)


def synthesize_views(
    view: DepthViews,
    motion: Float[Tensor, "b 4 4"],
    inverse_motion: Float[Tensor, "b 4 4"],
    pinhole: Float[Tensor, "b 4"],
    count: int,
) -> GraphRendering:
    """Synthesize images from cameras by warping nearby views.

    Args:
        view: views, ``count`` of them for each camera, the nearest first.
        motion: transforms from the views' camera frames to the cameras' frames.
        inverse_motion: inverses of ``motion``.
        pinhole: (fx, fy, cx, cy) of all views and cameras.
        count: views for each camera.
    """
    splats = splat_depth(view, motion, pinhole, count)
    covered = _soften_outline(_close_cracks((splats > 0).to(splats.dtype)))
    surface = fill_depth(splats)
    depth = surface.repeat_interleave(count, 0)
    points, uv = project(inverse_motion, unproject(depth, pinhole).flatten(2), pinhole)
    shape = depth.shape[1:]
    uv = uv.unflatten(2, shape)
    warped = sample(torch.cat([view.rgb, view.alpha[:, None], view.depth[:, None]], 1), uv)
    occlusion = torch.relu(points[:, 2].unflatten(1, shape) - warped[:, 4]) / _OCCLUDED
    order = torch.arange(count, dtype=depth.dtype, device=depth.device)[None, :, None, None] * _DECAY
    inside = _inside_image(uv).unflatten(0, (-1, count))
    visibility = torch.exp(-occlusion.square()).unflatten(0, (-1, count)) * inside
    weight = visibility * torch.exp(-order) + 1e-4
    rgba = (weight[:, :, None] * warped[:, :4].unflatten(0, (-1, count))).sum(1) / weight.sum(1)[:, None]
    # Pixels without a surface point are background, even if a view shows the object at the filled-in depth.
    background = torch.tensor([1.0, 1.0, 1.0, 0.0]).to(rgba)[:, None, None]
    rgba = background + covered[:, None] * (rgba - background)
    support = torch.maximum((visibility.amax(1) / _SUPPORTED).clamp(max=1), (1 - covered) * inside.amax(1))
    return GraphRendering(rgba[:, :3], rgba[:, 3], support, surface)


def _inside_image(uv: Float[Tensor, "b 2 h w"]) -> Float[Tensor, "b h w"]:
    """Return 1 where coordinates lie in an image of the same size, else 0: a view shows nothing beyond its border."""
    u, v = uv.unbind(1)
    return ((u > 0) & (u < uv.shape[3]) & (v > 0) & (v < uv.shape[2])).to(uv.dtype)


def _close_cracks(mask: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Close cracks of up to two pixels in a mask."""
    return -largest_around(-largest_around(mask, 3), 3)


def _soften_outline(mask: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Soften the edge of a mask over the three pixels around it.

    A splat may be off by a pixel. Beyond the outline the views show the background themselves. With a sharp edge, a
    surface point that just reaches a pixel in one runtime and misses it in another would change the result a lot.
    """
    return functional.avg_pool2d(largest_around(mask, 3)[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
