# SPDX-License-Identifier: Apache-2.0
"""Rasterizer of Gaussians on the CPU: fast, differentiable, bit-identical on any number of threads."""

import threading
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.render import sh_kernels, splat_projection, splat_tiles
from anomalib_pose.render.compiled import announced_compilation, for_ranges
from anomalib_pose.render.compositing import as_batch, over_background
from anomalib_pose.render.spherical_harmonics import sh_to_rgb
from anomalib_pose.render.splat_projection import CAMERA_CHUNK, PARTIALS, TILE
from anomalib_pose.render.types import Gaussians, RenderOutput, check_device

_GAUSSIANS_GRAIN = 256
_TILES_GRAIN = 4

_compiled = threading.Event()


class _ForwardState(NamedTuple):
    """Intermediate arrays of a forward pass for its backward pass; see ``splat_projection`` and ``splat_tiles``."""

    pinhole: np.ndarray
    splats: np.ndarray
    order: np.ndarray
    offsets: np.ndarray
    tile_starts: np.ndarray
    tile_splats: np.ndarray
    pair_numbers: np.ndarray
    visited: np.ndarray
    columns: int


def _rasterize(inputs: list[np.ndarray], pinhole: np.ndarray, images: list[np.ndarray]) -> _ForwardState:
    """Fill the images rgb, depth and alpha; inputs are means, quats, scales, opacities, colors and view."""
    height, width = images[2].shape
    columns, rows = -(-width // TILE), -(-height // TILE)
    count = len(inputs[0])
    splats, outlines = np.empty((count, 10), np.float32), np.empty((count, 4), np.float32)
    tile_rows = np.empty((count, 2), np.int32)
    for_ranges(
        lambda i, j: splat_projection.project(i, j, *inputs, pinhole, width, height, splats, outlines, tile_rows),
        count,
        _GAUSSIANS_GRAIN,
    )
    order = splat_tiles.sort_by_depth(splats, tile_rows)
    offsets = np.zeros(len(order) + 1, np.int64)
    for_ranges(
        lambda i, j: splat_tiles.count_pairs(i, j, order, splats, outlines, tile_rows, width, offsets[1:]),
        len(order),
        _GAUSSIANS_GRAIN,
    )
    np.cumsum(offsets, out=offsets)
    lists = splat_tiles.sort_into_tiles(order, offsets, splats, outlines, tile_rows, width, columns, rows)
    tile_starts, tile_splats, pair_numbers = lists
    visited = np.empty(columns * rows, np.int32)
    for_ranges(
        lambda i, j: splat_tiles.composite(i, j, tile_starts, tile_splats, splats, columns, *images, visited),
        columns * rows,
        _TILES_GRAIN,
    )
    return _ForwardState(pinhole, splats, order, offsets, tile_starts, tile_splats, pair_numbers, visited, columns)


def _rasterize_backward(
    state: _ForwardState, inputs: list[np.ndarray], images: list[np.ndarray], d_images: list[np.ndarray]
) -> list[np.ndarray]:
    """Compute the gradients of the inputs of ``_rasterize``, in their order."""
    height, width = images[2].shape
    partials = np.zeros((len(state.tile_splats), PARTIALS), np.float32)
    lists = (state.tile_starts, state.tile_splats, state.pair_numbers, state.visited, state.splats, state.columns)
    for_ranges(
        lambda i, j: splat_tiles.composite_backward(i, j, *lists, *images, *d_images, partials),
        len(state.visited),
        _TILES_GRAIN,
    )
    means, quats, scales, opacities, _, view = inputs
    d_inputs = [np.zeros(array.shape, np.float32) for array in inputs[:5]]
    d_view = np.zeros((-(-len(state.order) // CAMERA_CHUNK), 3, 4), np.float32)
    arrays = (state.order, state.offsets, partials, means, quats, scales, opacities, view, state.pinhole)
    for_ranges(
        lambda i, j: splat_projection.project_backward(i, j, *arrays, width, height, state.splats, *d_inputs, d_view),
        len(state.order),
        CAMERA_CHUNK,
    )
    return [*d_inputs, d_view.sum(0)]


class _Splat(torch.autograd.Function):
    """Images of one camera, from means, quats, scales, opacities, RGB and view (3, 4): float32, contiguous."""

    @staticmethod
    def forward(ctx: Any, pinhole: np.ndarray, width: int, height: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = ((height, width, 3), (height, width), (height, width))
        images = tuple(torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes)
        arrays = [tensor.detach().numpy() for tensor in inputs]
        state = _rasterize(arrays, pinhole, [image.numpy() for image in images])
        if any(ctx.needs_input_grad):
            ctx.state = state
            ctx.save_for_backward(*inputs, *images)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_images: Tensor) -> tuple[Tensor | None, ...]:
        arrays = [tensor.detach().numpy() for tensor in ctx.saved_tensors]
        d_arrays = [d_image.contiguous().numpy() for d_image in d_images]
        gradients = _rasterize_backward(ctx.state, arrays[:6], arrays[6:], d_arrays)
        return None, None, None, *map(torch.from_numpy, gradients)


def _view_colors(gaussians: Gaussians, camera_center: Tensor) -> Tensor:
    """Evaluate the RGB (N, 3) of Gaussians for a camera center (3,)."""
    colors, degree = gaussians.colors, gaussians.sh_degree
    if degree is None:
        return colors
    needs_grad = torch.is_grad_enabled() and any(
        part.requires_grad for part in (colors, gaussians.means, camera_center)
    )
    if needs_grad or not degree:
        return sh_to_rgb(degree, colors, gaussians.means, camera_center.to(colors))
    inputs = [part.detach().to(torch.float32).contiguous().numpy() for part in (colors, gaussians.means, camera_center)]
    rgb = torch.empty(len(colors), 3, dtype=torch.float32)
    rgb_array = rgb.numpy()
    for_ranges(lambda i, j: sh_kernels.colors(i, j, degree, *inputs, rgb_array), len(colors), _GAUSSIANS_GRAIN)
    return rgb


def _rasterize_camera(gaussians: Gaussians, camera: Camera) -> tuple[Tensor, ...]:
    """Render rgb (H, W, 3), depth (H, W) and alpha (H, W) of one unbatched camera over black."""
    colors = _view_colors(gaussians, camera.center)
    intrinsics = camera.K.detach()
    pinhole = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].to(torch.float32).numpy()
    tensors = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, colors, camera.viewmat[:3])
    inputs = [tensor.to(torch.float32).contiguous() for tensor in tensors]
    images = _Splat.apply(pinhole, camera.width, camera.height, *inputs)
    return tuple(image.to(gaussians.means.dtype) for image in images)


class CpuRasterizer:
    """CPU rasterizer with the image formation of gsplat's classic mode.

    The projection of a Gaussian is linearized at its center; the slope of the center's ray is clamped at 1.3 times the
    field of view. The projected covariance is blurred by 0.3 px². Gaussians are composited front to back in the order
    of z. A Gaussian contributes alpha = min(0.999, ...) where alpha is at least 1/255. A pixel is finished before the
    Gaussian that would take its transmittance to 1e-4 or less. Gaussians nearer than 0.01 are not rendered.

    Differentiable in every tensor of the Gaussians, in ``camera_to_world`` and in the background; not in ``K``, whose
    skew is not used. Computes in float32: float64 tensors are converted, and their images and gradients are float64.
    Safe to call from several threads, and in forked or spawned processes. Threads: ``torch.set_num_threads``. The first
    use on a machine compiles for about half a minute, see ``warmup``.
    """

    def __call__(self, gaussians: Gaussians, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render the Gaussians from one camera or from C cameras; see ``Rasterizer``.

        Args:
            gaussians: N Gaussians on the CPU.
            cameras: one unbatched camera (the output has no leading dimension) or a batch of C cameras.
            background: color (3,) or (C, 3) behind the Gaussians; black if None.

        Raises:
            ValueError: if a tensor is on another device, or the background does not fit the cameras.
        """
        check_device(gaussians, cameras, "CPU", "cpu", "gsplat")
        if not _compiled.is_set():
            warmup()
        batch = as_batch(cameras)
        renderings = [_rasterize_camera(gaussians, batch[index]) for index in range(len(batch))]
        rgb, depth, alpha = (
            torch.stack(images) if len(images) > 1 else images[0][None] for images in zip(*renderings, strict=True)
        )
        output = RenderOutput(over_background(rgb, alpha, background), depth, alpha)
        return output if cameras.batch_shape else output[0]


def warmup() -> None:
    """Compile the kernels, or load them from the cache on disk; log a line if that takes long."""
    # The first rendering may run under no_grad or inference mode: compile the backward kernels all the same.
    with announced_compilation("Gaussian splatting"), torch.inference_mode(mode=False), torch.enable_grad():
        means = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
        gaussians = Gaussians(means, torch.ones(1, 4), torch.full((1, 3), 0.1), torch.full((1,), 0.5), torch.ones(1, 3))
        camera = Camera(torch.eye(4), torch.tensor([[8.0, 0, 4], [0, 8.0, 4], [0, 0, 1]]), TILE, TILE)
        torch.stack([image.sum() for image in _rasterize_camera(gaussians, camera)]).sum().backward()
        harmonics = replace(gaussians, colors=torch.ones(1, 4, 3), sh_degree=1, means=means.detach())
        _view_colors(harmonics, camera.center)
    _compiled.set()
