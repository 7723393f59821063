# SPDX-License-Identifier: Apache-2.0
"""Volume rendering: rays of cameras, their samples, and compositing (Mildenhall et al. 2020, section 4)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.compositing import as_batch, over_background
from anomalib_pose.render.types import RenderOutput

Drawn = tuple[Float[Tensor, "n c"], Float[Tensor, " n"], Float[Tensor, " n"]]
"""What rays show: colors over black, expected distance times alpha in scene units, and alpha."""


class Rays(NamedTuple):
    """Rays in the world frame.

    Args:
        origins: of the rays (N, 3).
        directions: of length 1 (N, 3).
        cosines: between directions and the optical axis (N,): depth is distance times cosine.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    cosines: Float[Tensor, " n"]


def camera_rays(camera: Camera, pixels: Int[Tensor, " n"] | None = None) -> Rays:
    """Rays through pixel centers; differentiable in the camera's pose.

    Args:
        camera: one camera.
        pixels: indices into the image's pixels, row by row; None for all.
    """
    pose = camera.camera_to_world
    if pixels is None:
        pixels = torch.arange(camera.width * camera.height, device=pose.device)
    u = (pixels % camera.width).to(pose) + 0.5
    v = torch.div(pixels, camera.width, rounding_mode="floor").to(pose) + 0.5
    intrinsics = camera.K.to(pose)
    x = (u - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    inside = torch.stack([x, y, torch.ones_like(x)], 1)
    length = inside.norm(dim=1)
    directions = (inside / length[:, None]) @ pose[:3, :3].T
    return Rays(pose[:3, 3].expand_as(directions), directions, 1 / length)


def render_rays(draw: Callable[[Rays], Drawn], cameras: Camera, background: Tensor | None) -> RenderOutput:
    """Images of what rays show.

    Args:
        draw: what is seen along rays in the world frame.
        cameras: one camera, or C of them.
        background: color (3,) behind the object; black if None.
    """
    several = as_batch(cameras)
    images = []
    for index in range(len(several)):
        rays = camera_rays(several[index])
        rgb, distance, alpha = draw(rays)
        depth = torch.where(alpha > 0, distance * rays.cosines / alpha.clamp_min(1e-8), 0)
        images.append([image.unflatten(0, (several.height, several.width)) for image in (rgb, depth, alpha)])
    rgb, depth, alpha = (torch.stack(image) for image in zip(*images, strict=True))
    output = RenderOutput(over_background(rgb, alpha, background), depth, alpha)
    return output if cameras.batch_shape else output[0]


def box_interval(
    rays: Rays, lower: Float[Tensor, "3"], upper: Float[Tensor, "3"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Distances at which rays enter and leave a box; the second is the smaller where they miss it.

    Args:
        rays: in the box's frame.
        lower: corner of the box.
        upper: opposite corner.
    """
    safe = torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
    first, second = (lower - rays.origins) / safe, (upper - rays.origins) / safe
    enter = torch.minimum(first, second).amax(1).clamp_min(0)
    return enter, torch.maximum(first, second).amin(1)


def composite(
    density: Float[Tensor, " m"],
    colors: Float[Tensor, "m c"],
    distance: Float[Tensor, " m"],
    length: Float[Tensor, " m"],
    ray: Int[Tensor, " m"],
    count: int,
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " m"]]:
    """Colors, expected distance times alpha, alpha, and each sample's weight.

    ``weight_i = T_i (1 - exp(-density_i length_i))`` with ``T_i = exp(-sum_{j < i} density_j length_j)`` along a ray.

    Args:
        density: of M samples, the samples of a ray in the order of distance, ray after ray.
        colors: of the samples.
        distance: along the ray.
        length: that each sample stands for.
        ray: number of each sample's ray, not falling.
        count: number N of rays.
    """
    depth = density * length
    # sums over all samples reach 1e5: differences of them need the double's digits
    total = torch.cumsum(depth.double(), 0)
    before = total - depth
    first = torch.searchsorted(ray, torch.arange(count, device=ray.device)).clamp_max(max(len(ray) - 1, 0))
    optical = (before - before[first][ray]).to(depth) if len(ray) else depth
    weight = torch.exp(-optical) * -torch.expm1(-depth)
    rgb = colors.new_zeros(count, colors.shape[1]).index_add(0, ray, weight[:, None] * colors)
    along = distance.new_zeros(count).index_add(0, ray, weight * distance)
    return rgb, along, weight.new_zeros(count).index_add(0, ray, weight), weight
