# SPDX-License-Identifier: Apache-2.0
"""Renderer of sparse voxel grids: CPU kernels, and plain PyTorch on other devices and for gradients of rays."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.render import volume_kernels
from anomalib_pose.render.compiled import announced_compilation, for_ranges
from anomalib_pose.render.volume import Rays, RenderedRays, box_interval, composite
from anomalib_pose.render.volume_kernels import BLOCK, EMPTY_DENSITY

_RAYS_GRAIN = 64
_GRADIENT_PARTS = 4
_SAMPLES_PER_CHUNK = 4_000_000

_compiled = threading.Event()


@dataclass(frozen=True)
class Voxels:
    """A sparse grid of vertices with raw density and raw colors, interpolated between vertices.

    Density is ``softplus(raw) / cell``, a color is ``sigmoid(raw)``. Vertices that are not occupied have a raw density
    of -8 and raw colors of 0. A cell without occupied vertices is empty.

    Args:
        lower: position (3,) of the first vertex, world frame.
        cell: distance of neighboring vertices, scene units.
        table: row of ``values`` of each vertex of the grid (X, Y, Z); -1 if it is not occupied.
        blocks: marks cubes of 8 vertices per side with an occupied vertex inside, or in the first layer of the next
            cube.
        values: raw density and raw colors (V, 1 + C).
    """

    lower: Float[Tensor, "3"]
    cell: float
    table: Int[Tensor, "x y z"]
    blocks: Bool[Tensor, "bx by bz"]
    values: Float[Tensor, "v channels"]

    @property
    def upper(self) -> Float[Tensor, "3"]:
        """Position (3,) of the last vertex, world frame."""
        return self.lower + self.cell * (self.lower.new_tensor(self.table.shape) - 1)


def index_vertices(
    occupied: Bool[Tensor, "x y z"],
) -> tuple[Int[Tensor, "x y z"], Bool[Tensor, "bx by bz"]]:
    """Build ``Voxels.table`` and ``Voxels.blocks``; occupied vertices are numbered in the order of the grid.

    Args:
        occupied: marks the occupied vertices of the grid.
    """
    table = torch.full(occupied.shape, -1, dtype=torch.int32, device=occupied.device)
    table[occupied] = torch.arange(int(occupied.sum()), dtype=torch.int32, device=occupied.device)
    padding = [side for length in reversed(occupied.shape) for side in (0, -length % BLOCK + 1)]
    padded = F.pad(occupied.float()[None, None], padding)
    return table, F.max_pool3d(padded, BLOCK + 1, BLOCK)[0, 0] > 0


def render_voxels(voxels: Voxels, rays: Rays, step: float, jitter: Float[Tensor, " n"] | None = None) -> RenderedRays:
    """Render rays: colors, expected distance times alpha in scene units, and alpha.

    Differentiable in the values, and in rays that require a gradient.

    Args:
        voxels: grid to render.
        rays: N rays in the world frame.
        step: distance of samples, in cells.
        jitter: position (N,) of the first sample in its step, in [0, 1); the middle of the step if None.
    """
    local = Rays((rays.origins - voxels.lower) / voxels.cell, rays.directions, rays.cosines)
    if jitter is None:
        jitter = torch.full_like(rays.cosines, 0.5)
    if voxels.values.device.type != "cpu" or local.directions.requires_grad or local.origins.requires_grad:
        colors, distance, alpha = _march_torch(voxels, local, step, jitter)
    else:
        if not _compiled.is_set():
            warmup()
        colors, distance, alpha = _March.apply(voxels, local, step, jitter, voxels.values)
    return colors, distance * voxels.cell, alpha


def _march_torch(voxels: Voxels, rays: Rays, step: float, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Render rays in cells like the kernel ``march``, but without an end of rays at low transmittance."""
    max_samples = int(float(rays.origins.new_tensor(voxels.table.shape).norm()) / step) + 1
    chunk_size = max(1, _SAMPLES_PER_CHUNK // max_samples)
    chunks = zip(*(tensor.split(chunk_size) for tensor in (*rays, jitter)), strict=True)
    results = [_march_chunk(voxels, Rays(*chunk), step, chunk_jitter, max_samples) for *chunk, chunk_jitter in chunks]
    colors, distance, alpha = (torch.cat(parts) for parts in zip(*results, strict=True))
    return colors, distance, alpha


def _march_chunk(
    voxels: Voxels, rays: Rays, step: float, jitter: Tensor, max_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Render a chunk of rays, small enough to hold all samples in memory."""
    top = rays.origins.new_tensor(voxels.table.shape) - 1
    enter, leave = box_interval(rays, torch.zeros_like(top), top)
    with torch.no_grad():
        numbers = torch.arange(max_samples, device=top.device) + jitter[:, None]
        inside = enter[:, None] + numbers * step < leave[:, None]
        ray, number = inside.nonzero(as_tuple=True)
        points = rays.origins[ray] + (enter[ray] + (number + jitter[ray]) * step)[:, None] * rays.directions[ray]
        in_block = voxels.blocks[tuple(torch.div(points.long(), BLOCK, rounding_mode="floor").clamp_min(0).T)]
        ray, number = ray[in_block], number[in_block]
    t = enter[ray] + (number + jitter[ray]) * step
    raw, occupied = interpolate(voxels, rays.origins[ray] + t[:, None] * rays.directions[ray])
    density = F.softplus(raw[:, 0]) * occupied
    colors, distance, alpha, _ = composite(
        density, raw[:, 1:].sigmoid(), t, torch.full_like(t, step), ray, len(rays.origins)
    )
    return colors, distance, alpha


def interpolate(voxels: Voxels, points: Float[Tensor, "m 3"]) -> tuple[Float[Tensor, "m channels"], Bool[Tensor, " m"]]:
    """Interpolate raw density and raw colors at points; differentiable in values and points.

    Args:
        voxels: grid to interpolate.
        points: positions (M, 3) in cells from the first vertex.

    Returns:
        values (M, 1 + C), and whether one of the eight vertices around a point is occupied (M,).
    """
    top = points.new_tensor(voxels.table.shape) - 2
    first = points.detach().floor().clamp_min(0).minimum(top)
    offset = points - first
    first = first.long()
    empty = voxels.values.new_zeros(voxels.values.shape[1])
    empty[0] = float(EMPTY_DENSITY)
    total = torch.zeros(len(points), voxels.values.shape[1], dtype=points.dtype, device=points.device)
    occupied = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for corner in torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3):
        weight = torch.where(corner.bool(), offset, 1 - offset).prod(1)
        row = voxels.table[tuple((first + corner).T)].long()
        value = torch.where((row >= 0)[:, None], voxels.values[row.clamp_min(0)], empty)
        total = total + weight[:, None] * value
        occupied = occupied | (row >= 0)
    return total, occupied


class _March(torch.autograd.Function):
    """Ray marching with the CPU kernels; differentiable in the values only."""

    @staticmethod
    def forward(
        ctx: Any, voxels: Voxels, rays: Rays, step: float, jitter: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, channels = len(rays.origins), values.shape[1] - 1
        images = torch.zeros(count, channels), torch.zeros(count), torch.zeros(count)
        inputs = [tensor.detach().float().contiguous().numpy() for tensor in (rays.origins, rays.directions, jitter)]
        inputs += [voxels.table.numpy(), voxels.blocks.numpy(), values.detach().float().contiguous().numpy()]
        arrays = [image.numpy() for image in images]
        for_ranges(lambda i, j: volume_kernels.march(i, j, *inputs, np.float32(step), *arrays), count, _RAYS_GRAIN)
        ctx.inputs, ctx.step = inputs, np.float32(step)
        ctx.save_for_backward(*images)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_images: Tensor) -> tuple[Tensor | None, ...]:
        images = [image.detach().numpy() for image in ctx.saved_tensors]
        gradients = [d_image.float().contiguous().numpy() for d_image in d_images]
        values = ctx.inputs[-1]
        # The number of parts does not depend on the number of threads: the order of sums and the bits stay the same.
        parts = np.zeros((_GRADIENT_PARTS, *values.shape), np.float32)
        cuts = [len(images[0]) * part // _GRADIENT_PARTS for part in range(_GRADIENT_PARTS + 1)]

        def work(start: int, stop: int) -> None:
            for part in range(start, stop):
                volume_kernels.march_backward(
                    cuts[part], cuts[part + 1], *ctx.inputs, ctx.step, *images, *gradients, parts[part]
                )

        for_ranges(work, _GRADIENT_PARTS)
        return None, None, None, None, torch.from_numpy(parts).sum(0)


def warmup() -> None:
    """Compile the kernels, or load them from the cache on disk; log a line if that takes long."""
    _compiled.set()
    with announced_compilation("radiance fields"), torch.inference_mode(mode=False), torch.enable_grad():
        table, blocks = index_vertices(torch.ones(2, 2, 2, dtype=torch.bool))
        values = torch.zeros(8, 4, requires_grad=True)
        voxels = Voxels(torch.zeros(3), 1.0, table, blocks, values)
        rays = Rays(torch.tensor([[0.5, 0.5, -1.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1))
        render_voxels(voxels, rays, 0.5)[0].sum().backward()
