# SPDX-License-Identifier: Apache-2.0
"""Gaussian splatting on the CPU: fast, differentiable, and the same bits whatever the number of threads."""

import threading
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.render import sh_kernels, splat_blocks, splat_projection
from anomalib_pose.render.compiled import announced_compilation, for_ranges
from anomalib_pose.render.compositing import as_batch, over_background
from anomalib_pose.render.spherical_harmonics import sh_to_rgb
from anomalib_pose.render.splat_projection import BLOCK, CAMERA_CHUNK, PARTIALS
from anomalib_pose.render.types import Gaussians, RenderOutput, check_device

_GAUSSIANS_GRAIN = 256
_BLOCKS_GRAIN = 4

_compiled = threading.Event()


class _Drawing(NamedTuple):
    """What the backward pass needs of a forward pass, besides its tensors."""

    pinhole: np.ndarray
    splats: np.ndarray
    order: np.ndarray
    offsets: np.ndarray
    begins: np.ndarray
    listed: np.ndarray
    numbers: np.ndarray
    drawn: np.ndarray
    across: int


def _draw(inputs: list[np.ndarray], pinhole: np.ndarray, images: list[np.ndarray]) -> _Drawing:
    """Fill the images rgb, depth and alpha; inputs are means, quats, scales, opacities, colors and view."""
    height, width = images[2].shape
    across, down = -(-width // BLOCK), -(-height // BLOCK)
    count = len(inputs[0])
    splats, outlines = np.empty((count, 10), np.float32), np.empty((count, 4), np.float32)
    rows = np.empty((count, 2), np.int32)
    for_ranges(
        lambda i, j: splat_projection.project(i, j, *inputs, pinhole, width, height, splats, outlines, rows),
        count,
        _GAUSSIANS_GRAIN,
    )
    order = splat_blocks.sort_by_depth(splats, rows)
    offsets = np.zeros(len(order) + 1, np.int64)
    for_ranges(
        lambda i, j: splat_blocks.count_pairs(i, j, order, splats, outlines, rows, width, offsets[1:]),
        len(order),
        _GAUSSIANS_GRAIN,
    )
    np.cumsum(offsets, out=offsets)
    begins, listed, numbers = splat_blocks.sort_into_blocks(order, offsets, splats, outlines, rows, width, across, down)
    drawn = np.empty(across * down, np.int32)
    for_ranges(
        lambda i, j: splat_blocks.draw(i, j, begins, listed, splats, across, *images, drawn),
        across * down,
        _BLOCKS_GRAIN,
    )
    return _Drawing(pinhole, splats, order, offsets, begins, listed, numbers, drawn, across)


def _draw_backward(
    drawing: _Drawing, inputs: list[np.ndarray], images: list[np.ndarray], d_images: list[np.ndarray]
) -> list[np.ndarray]:
    """Gradients of the inputs of ``_draw``, in their order."""
    height, width = images[2].shape
    partials = np.zeros((len(drawing.listed), PARTIALS), np.float32)
    lists = (drawing.begins, drawing.listed, drawing.numbers, drawing.drawn, drawing.splats, drawing.across)
    for_ranges(
        lambda i, j: splat_blocks.draw_backward(i, j, *lists, *images, *d_images, partials),
        len(drawing.drawn),
        _BLOCKS_GRAIN,
    )
    means, quats, scales, opacities, _, view = inputs
    d_inputs = [np.zeros(array.shape, np.float32) for array in inputs[:5]]
    d_view = np.zeros((-(-len(drawing.order) // CAMERA_CHUNK), 3, 4), np.float32)
    given = (drawing.order, drawing.offsets, partials, means, quats, scales, opacities, view, drawing.pinhole)
    for_ranges(
        lambda i, j: splat_projection.project_backward(i, j, *given, width, height, drawing.splats, *d_inputs, d_view),
        len(drawing.order),
        CAMERA_CHUNK,
    )
    return [*d_inputs, d_view.sum(0)]


class _Splat(torch.autograd.Function):
    """Images of one camera, from means, quats, scales, opacities, RGB and view (3, 4): float32, contiguous."""

    @staticmethod
    def forward(ctx: Any, pinhole: np.ndarray, width: int, height: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = ((height, width, 3), (height, width), (height, width))
        images = tuple(torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes)
        drawing = _draw([tensor.detach().numpy() for tensor in inputs], pinhole, [image.numpy() for image in images])
        if any(ctx.needs_input_grad):
            ctx.drawing = drawing
            ctx.save_for_backward(*inputs, *images)
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_images: Tensor) -> tuple[Tensor | None, ...]:
        arrays = [tensor.detach().numpy() for tensor in ctx.saved_tensors]
        d_arrays = [d_image.contiguous().numpy() for d_image in d_images]
        gradients = _draw_backward(ctx.drawing, arrays[:6], arrays[6:], d_arrays)
        return None, None, None, *map(torch.from_numpy, gradients)


def _colors(gaussians: Gaussians, eye: Tensor) -> Tensor:
    """RGB (N, 3) as seen from a point."""
    colors, degree = gaussians.colors, gaussians.sh_degree
    if degree is None:
        return colors
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (colors, gaussians.means, eye))
    if learns or not degree:
        return sh_to_rgb(degree, colors, gaussians.means, eye.to(colors))
    inputs = [part.detach().to(torch.float32).contiguous().numpy() for part in (colors, gaussians.means, eye)]
    found = torch.empty(len(colors), 3, dtype=torch.float32)
    drawn = found.numpy()
    for_ranges(lambda i, j: sh_kernels.colors(i, j, degree, *inputs, drawn), len(colors), _GAUSSIANS_GRAIN)
    return found


def _draw_one(gaussians: Gaussians, camera: Camera) -> tuple[Tensor, ...]:
    colors = _colors(gaussians, camera.center)
    intrinsics = camera.K.detach()
    pinhole = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].to(torch.float32).numpy()
    tensors = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, colors, camera.viewmat[:3])
    inputs = [tensor.to(torch.float32).contiguous() for tensor in tensors]
    images = _Splat.apply(pinhole, camera.width, camera.height, *inputs)
    return tuple(image.to(gaussians.means.dtype) for image in images)


class CpuRasterizer:
    """Rasterizer for the CPU, with gsplat's classic image formation.

    A Gaussian is linearized at its center (the slope of its ray clamped at 1.3 times the field of view), blurred by
    0.3 px², and composited front to back in the order of z with alpha = min(0.999, ...) where that is at least 1/255,
    until the transmittance would fall to 1e-4. What is nearer than 0.01 is not drawn.

    Differentiable in every tensor of the Gaussians, in ``camera_to_world`` and in the background; not in ``K``, whose
    skew is not used. Computes in float32; float64 tensors are converted, and get float64 images and gradients. Safe to
    call from several threads, and in forked or spawned processes. Threads: ``torch.set_num_threads``. The first use on
    a machine compiles for about half a minute, see ``warmup``.
    """

    def __call__(self, gaussians: Gaussians, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Draw the Gaussians as one or several cameras see them; see ``Rasterizer``.

        Args:
            gaussians: what to draw, on the CPU.
            cameras: one camera (the output has no leading dimension) or C of them.
            background: color (3,) or (C, 3) behind the Gaussians; black if None.

        Raises:
            ValueError: if a tensor is on another device, or the background does not fit the cameras.
        """
        check_device(gaussians, cameras, "CPU", "cpu", "gsplat")
        if not _compiled.is_set():
            warmup()
        several = as_batch(cameras)
        drawn = [_draw_one(gaussians, several[index]) for index in range(len(several))]
        rgb, depth, alpha = (
            torch.stack(images) if len(images) > 1 else images[0][None] for images in zip(*drawn, strict=True)
        )
        output = RenderOutput(over_background(rgb, alpha, background), depth, alpha)
        return output if cameras.batch_shape else output[0]


def warmup() -> None:
    """Compile the kernels, or load them from the cache on disk; logs a line while that takes long."""
    # The first rendering may happen under no_grad or inference mode; the backward kernels are compiled all the same.
    with announced_compilation("Gaussian splatting"), torch.inference_mode(mode=False), torch.enable_grad():
        means = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
        gaussians = Gaussians(means, torch.ones(1, 4), torch.full((1, 3), 0.1), torch.full((1,), 0.5), torch.ones(1, 3))
        camera = Camera(torch.eye(4), torch.tensor([[8.0, 0, 4], [0, 8.0, 4], [0, 0, 1]]), BLOCK, BLOCK)
        torch.stack([image.sum() for image in _draw_one(gaussians, camera)]).sum().backward()
        _colors(replace(gaussians, colors=torch.ones(1, 4, 3), sh_degree=1, means=means.detach()), camera.center)
    _compiled.set()
