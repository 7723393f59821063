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

RenderedRays = tuple[Float[Tensor, "n c"], Float[Tensor, " n"], Float[Tensor, " n"]]
"""Results of N rays: colors over black, expected distance times alpha in scene units, and alpha."""


class Rays(NamedTuple):
    """Rays in the world frame.

    Args:
        origins: start points (N, 3).
        directions: unit vectors (N, 3).
        cosines: cosines (N,) between directions and the optical axis: depth is distance times cosine.
    """

    origins: Float[Tensor, "n 3"]
    directions: Float[Tensor, "n 3"]
    cosines: Float[Tensor, " n"]


def camera_rays(camera: Camera, pixels: Int[Tensor, " n"] | None = None) -> Rays:
    """Compute the rays through pixel centers; differentiable in the camera's pose.

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
    camera_directions = torch.stack([x, y, torch.ones_like(x)], 1)
    length = camera_directions.norm(dim=1)
    directions = (camera_directions / length[:, None]) @ pose[:3, :3].T
    return Rays(pose[:3, 3].expand_as(directions), directions, 1 / length)


def render_rays(render: Callable[[Rays], RenderedRays], cameras: Camera, background: Tensor | None) -> RenderOutput:
    """Render images by casting one ray through each pixel center.

    Args:
        render: renders rays in the world frame.
        cameras: one unbatched camera, or a batch of C cameras.
        background: color (3,) behind the object; black if None.
    """
    batch = as_batch(cameras)
    images = []
    for index in range(len(batch)):
        rays = camera_rays(batch[index])
        rgb, distance, alpha = render(rays)
        depth = torch.where(alpha > 0, distance * rays.cosines / alpha.clamp_min(1e-8), 0)
        images.append([image.unflatten(0, (batch.height, batch.width)) for image in (rgb, depth, alpha)])
    rgb, depth, alpha = (torch.stack(image) for image in zip(*images, strict=True))
    output = RenderOutput(over_background(rgb, alpha, background), depth, alpha)
    return output if cameras.batch_shape else output[0]


def box_interval(
    rays: Rays, lower: Float[Tensor, "3"], upper: Float[Tensor, "3"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Compute the distances at which rays enter and leave an axis-aligned box.

    Args:
        rays: rays in the box's frame.
        lower: corner of the box with the smallest coordinates.
        upper: opposite corner.

    Returns:
        distances of entry and of exit; exit < entry for rays that miss the box.
    """
    nonzero = torch.where(rays.directions.abs() < 1e-9, 1e-9, rays.directions)
    first, second = (lower - rays.origins) / nonzero, (upper - rays.origins) / nonzero
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
    """Composite samples along rays (Mildenhall et al. 2020, equation 3).

    ``weight_i = T_i (1 - exp(-density_i length_i))`` with ``T_i = exp(-sum_{j < i} density_j length_j)`` along a ray.

    Args:
        density: densities of M samples, ray after ray, in the order of distance along each ray.
        colors: colors of the samples.
        distance: distances of the samples along their rays.
        length: length of the ray segment of each sample.
        ray: index of each sample's ray, in ascending order.
        count: number N of rays.

    Returns:
        colors over black, expected distance times alpha, alpha, and the weight of each sample.
    """
    optical_depth = density * length
    # Sums over all samples reach 1e5: their differences need the digits of float64.
    total = torch.cumsum(optical_depth.double(), 0)
    before = total - optical_depth
    first = torch.searchsorted(ray, torch.arange(count, device=ray.device)).clamp_max(max(len(ray) - 1, 0))
    depth_in_front = (before - before[first][ray]).to(optical_depth) if len(ray) else optical_depth
    weight = torch.exp(-depth_in_front) * -torch.expm1(-optical_depth)
    rgb = colors.new_zeros(count, colors.shape[1]).index_add(0, ray, weight[:, None] * colors)
    weighted_distance = distance.new_zeros(count).index_add(0, ray, weight * distance)
    return rgb, weighted_distance, weight.new_zeros(count).index_add(0, ray, weight), weight
