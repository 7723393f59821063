# SPDX-License-Identifier: Apache-2.0
"""Rays through a sparse voxel grid: compiled on the CPU, plain PyTorch elsewhere and for gradients of the rays."""

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
from anomalib_pose.render.volume import Rays, box_interval, composite
from anomalib_pose.render.volume_kernels import BLOCK, EMPTY_DENSITY

_RAYS_GRAIN = 64
_GRADIENT_PARTS = 4
_SAMPLES_AT_ONCE = 4_000_000

_compiled = threading.Event()


@dataclass(frozen=True)
class Voxels:
    """A sparse grid of vertices with raw density and raw colors, interpolated in between.

    Density is ``softplus(raw) / cell``, a color ``sigmoid(raw)``. Vertices that are not kept have a raw density of -8
    and raw colors of 0; where none of the eight around is kept there is nothing.

    Args:
        lower: position (3,) of the first vertex, world frame.
        cell: distance of neighboring vertices, scene units.
        table: row of ``values`` of each vertex of the grid (X, Y, Z), or -1.
        blocks: which cubes of 8 vertices' side keep any vertex of their own or of their neighbors' first layer.
        values: raw density and raw colors (V, 1 + C).
    """

    lower: Float[Tensor, "3"]
    cell: float
    table: Int[Tensor, "x y z"]
    blocks: Bool[Tensor, "bx by bz"]
    values: Float[Tensor, "v channels"]

    @property
    def upper(self) -> Float[Tensor, "3"]:
        """Position of the last vertex."""
        return self.lower + self.cell * (self.lower.new_tensor(self.table.shape) - 1)


def index_vertices(
    kept: Bool[Tensor, "x y z"],
) -> tuple[Int[Tensor, "x y z"], Bool[Tensor, "bx by bz"]]:
    """Table and blocks of a grid whose kept vertices are numbered in the order of the grid; see ``Voxels``."""
    table = torch.full(kept.shape, -1, dtype=torch.int32, device=kept.device)
    table[kept] = torch.arange(int(kept.sum()), dtype=torch.int32, device=kept.device)
    padding = [side for length in reversed(kept.shape) for side in (0, -length % BLOCK + 1)]
    padded = F.pad(kept.float()[None, None], padding)
    return table, F.max_pool3d(padded, BLOCK + 1, BLOCK)[0, 0] > 0


def draw_voxels(
    voxels: Voxels, rays: Rays, step: float, jitter: Float[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Colors, expected distance times alpha in scene units, and alpha of rays.

    Differentiable in the values, and in the rays where those ask for it.

    Args:
        voxels: the grid.
        rays: world frame.
        step: between samples, in cells.
        jitter: place of the first sample, in steps (N,) in [0, 1); the middle of the step if None.
    """
    local = Rays((rays.origins - voxels.lower) / voxels.cell, rays.directions, rays.cosines)
    if jitter is None:
        jitter = torch.full_like(rays.cosines, 0.5)
    if voxels.values.device.type != "cpu" or local.directions.requires_grad or local.origins.requires_grad:
        colors, distance, alpha = _draw_torch(voxels, local, step, jitter)
    else:
        if not _compiled.is_set():
            warmup()
        colors, distance, alpha = _March.apply(voxels, local, step, jitter, voxels.values)
    return colors, distance * voxels.cell, alpha


def _draw_torch(voxels: Voxels, rays: Rays, step: float, jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rays in cells; as ``march`` of the kernels but for the light below which a ray ends."""
    most = int(float(rays.origins.new_tensor(voxels.table.shape).norm()) / step) + 1
    parts = [
        _draw_some(voxels, Rays(*some), step, shift, most)
        for *some, shift in zip(
            *(tensor.split(max(1, _SAMPLES_AT_ONCE // most)) for tensor in (*rays, jitter)), strict=True
        )
    ]
    colors, distance, alpha = (torch.cat(part) for part in zip(*parts, strict=True))
    return colors, distance, alpha


def _draw_some(voxels: Voxels, rays: Rays, step: float, jitter: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    top = rays.origins.new_tensor(voxels.table.shape) - 1
    enter, leave = box_interval(rays, torch.zeros_like(top), top)
    with torch.no_grad():
        numbers = torch.arange(most, device=top.device) + jitter[:, None]
        inside = enter[:, None] + numbers * step < leave[:, None]
        ray, number = inside.nonzero(as_tuple=True)
        points = rays.origins[ray] + (enter[ray] + (number + jitter[ray]) * step)[:, None] * rays.directions[ray]
        used = voxels.blocks[tuple(torch.div(points.long(), BLOCK, rounding_mode="floor").clamp_min(0).T)]
        ray, number = ray[used], number[used]
    t = enter[ray] + (number + jitter[ray]) * step
    raw, kept = interpolate(voxels, rays.origins[ray] + t[:, None] * rays.directions[ray])
    density = F.softplus(raw[:, 0]) * kept
    colors, distance, alpha, _ = composite(
        density, raw[:, 1:].sigmoid(), t, torch.full_like(t, step), ray, len(rays.origins)
    )
    return colors, distance, alpha


def interpolate(voxels: Voxels, points: Float[Tensor, "m 3"]) -> tuple[Float[Tensor, "m channels"], Bool[Tensor, " m"]]:
    """Raw density and colors between vertices, and whether any vertex around is kept.

    Differentiable in values and points.

    Args:
        voxels: the grid.
        points: in cells from the first vertex.
    """
    top = points.new_tensor(voxels.table.shape) - 2
    first = points.detach().floor().clamp_min(0).minimum(top)
    part = points - first
    first = first.long()
    empty = voxels.values.new_zeros(voxels.values.shape[1])
    empty[0] = float(EMPTY_DENSITY)
    total = torch.zeros(len(points), voxels.values.shape[1], dtype=points.dtype, device=points.device)
    kept = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    for corner in torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3):
        weight = torch.where(corner.bool(), part, 1 - part).prod(1)
        row = voxels.table[tuple((first + corner).T)].long()
        value = torch.where((row >= 0)[:, None], voxels.values[row.clamp_min(0)], empty)
        total = total + weight[:, None] * value
        kept = kept | (row >= 0)
    return total, kept


class _March(torch.autograd.Function):
    """The compiled kernels; differentiable in the values alone."""

    @staticmethod
    def forward(
        ctx: Any, voxels: Voxels, rays: Rays, step: float, jitter: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, channels = len(rays.origins), values.shape[1] - 1
        images = torch.zeros(count, channels), torch.zeros(count), torch.zeros(count)
        given = [tensor.detach().float().contiguous().numpy() for tensor in (rays.origins, rays.directions, jitter)]
        given += [voxels.table.numpy(), voxels.blocks.numpy(), values.detach().float().contiguous().numpy()]
        arrays = [image.numpy() for image in images]
        for_ranges(lambda i, j: volume_kernels.march(i, j, *given, np.float32(step), *arrays), count, _RAYS_GRAIN)
        ctx.given, ctx.step = given, np.float32(step)
        ctx.save_for_backward(*images)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_images: Tensor) -> tuple[Tensor | None, ...]:
        images = [image.detach().numpy() for image in ctx.saved_tensors]
        gradients = [d_image.float().contiguous().numpy() for d_image in d_images]
        values = ctx.given[-1]
        # A number of parts that does not depend on the threads: sums keep their order, results their bits.
        parts = np.zeros((_GRADIENT_PARTS, *values.shape), np.float32)
        cuts = [len(images[0]) * part // _GRADIENT_PARTS for part in range(_GRADIENT_PARTS + 1)]

        def work(start: int, stop: int) -> None:
            for part in range(start, stop):
                volume_kernels.march_backward(
                    cuts[part], cuts[part + 1], *ctx.given, ctx.step, *images, *gradients, parts[part]
                )

        for_ranges(work, _GRADIENT_PARTS)
        return None, None, None, None, torch.from_numpy(parts).sum(0)


def warmup() -> None:
    """Compile the kernels, or load them from the cache on disk; logs a line while that takes long."""
    _compiled.set()
    with announced_compilation("radiance fields"), torch.inference_mode(mode=False), torch.enable_grad():
        table, blocks = index_vertices(torch.ones(2, 2, 2, dtype=torch.bool))
        values = torch.zeros(8, 4, requires_grad=True)
        voxels = Voxels(torch.zeros(3), 1.0, table, blocks, values)
        rays = Rays(torch.tensor([[0.5, 0.5, -1.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1))
        draw_voxels(voxels, rays, 0.5)[0].sum().backward()
