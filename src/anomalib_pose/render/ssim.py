# SPDX-License-Identifier: Apache-2.0
"""Structural similarity (SSIM, Wang et al. 2004) as a loss, with fast CPU kernels for value and gradient."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.render import ssim_kernels
from anomalib_pose.render.compiled import announced_compilation, for_ranges


def ssim(a: Float[Tensor, "*images_height_width 3"], b: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Compute the mean structural similarity of images, as in the loss of 3D Gaussian splatting.

    The window is a Gaussian of 11 pixels and sigma 1.5. Images are padded with zeros. The constants are 0.01² and
    0.03², for a range of 1. The CPU computes in float32; results are bit-identical on any number of threads.

    Args:
        a: images (H, W, 3) or (C, H, W, 3) in [0, 1]; differentiable.
        b: images of the same shape, dtype and device; differentiable, at twice the cost if both need a gradient.

    Returns:
        mean over pixels, channels and images, a scalar of the dtype of ``a``.

    Raises:
        ValueError: if the shapes differ or are neither of the two, or the devices differ.
    """
    if a.shape != b.shape or a.ndim not in {3, 4} or not a.numel():
        msg = (
            f"ssim compares two images (H, W, 3) or (C, H, W, 3) of one shape, got {tuple(a.shape)}, {tuple(b.shape)}."
        )
        raise ValueError(msg)
    if a.device != b.device:
        msg = f"ssim compares images on one device, got {a.device} and {b.device}."
        raise ValueError(msg)
    if a.device.type != "cpu":
        return _by_convolution(a, b)
    rows = (-1, a.shape[-3], 3 * a.shape[-2])
    flat_a, flat_b = (image.to(torch.float32).reshape(rows).contiguous() for image in (a, b))
    value: Tensor = _Similarity.apply(flat_a, flat_b)
    return value.to(a.dtype)


def warmup() -> None:
    """Compile the kernels, or load them from the cache on disk; log a line if that takes long."""
    with announced_compilation("structural similarity"), torch.inference_mode(mode=False), torch.enable_grad():
        image = torch.zeros((1, 1, 3), dtype=torch.float32, device="cpu", requires_grad=True)
        ssim(image, image.detach()).backward()


class _Similarity(torch.autograd.Function):
    """Mean similarity of images (C, H, 3 W), float32, contiguous."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        derivatives = [_no_derivatives(), _no_derivatives()]
        for index in (0, 1):
            if ctx.needs_input_grad[index]:
                derivatives[index] = torch.empty((3, *a.shape), dtype=torch.float32, device="cpu")
        value = _mean(a, b, derivatives[0])
        if ctx.needs_input_grad[1]:
            _mean(b, a, derivatives[1])
        ctx.save_for_backward(a, b, *derivatives)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_value: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b, derivatives_a, derivatives_b = ctx.saved_tensors
        scale = np.float32(d_value.item() / a.numel())
        needs_a, needs_b = ctx.needs_input_grad
        return (
            _gradient(a, b, derivatives_a, scale) if needs_a else None,
            _gradient(b, a, derivatives_b, scale) if needs_b else None,
        )


def _no_derivatives() -> Tensor:
    """Return an empty buffer: the kernel then skips the derivatives."""
    return torch.empty((3, 0, 0, 0), dtype=torch.float32, device="cpu")


def _mean(a: Tensor, b: Tensor, derivatives: Tensor) -> Tensor:
    """Compute the mean similarity, and fill ``derivatives`` (3, C, H, 3 W) if it is not empty."""
    count = ssim_kernels.tiles(a.shape[0], a.shape[1], a.shape[2] // 3)
    sums = np.empty(count, np.float64)
    arrays = (a.detach().numpy(), b.detach().numpy(), sums, derivatives.numpy())
    for_ranges(lambda i, j: ssim_kernels.similarity(i, j, *arrays), count)
    return torch.tensor(math.fsum(sums) / a.numel(), dtype=torch.float32, device="cpu")


def _gradient(a: Tensor, b: Tensor, derivatives: Tensor, scale: np.float32) -> Tensor:
    """Compute ``scale`` times the gradient of the summed similarity with respect to ``a`` (C, H, 3 W)."""
    count = ssim_kernels.tiles(a.shape[0], a.shape[1], a.shape[2] // 3)
    gradient = torch.empty_like(a)
    arrays = (a.detach().numpy(), b.detach().numpy(), derivatives.numpy(), scale, gradient.numpy())
    for_ranges(lambda i, j: ssim_kernels.similarity_backward(i, j, *arrays), count)
    return gradient


def _by_convolution(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``ssim`` in plain PyTorch, for devices without the kernels."""
    x, y = (image.reshape(-1, *image.shape[-3:]).movedim(-1, 1) for image in (a, b))
    radius, channels = ssim_kernels.RADIUS, 15
    offsets = torch.arange(-radius, radius + 1, dtype=a.dtype, device=a.device)
    taps = torch.softmax(-0.5 * (offsets / ssim_kernels.SIGMA).square(), 0).expand(channels, 1, -1)
    moments = torch.cat([x, y, x * x, y * y, x * y], 1)
    moments = F.conv2d(moments, taps[:, :, None], padding=(0, radius), groups=channels)
    moments = F.conv2d(moments, taps[..., None], padding=(radius, 0), groups=channels)
    mean_x, mean_y, xx, yy, xy = moments.split(3, 1)
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    luminance = (2 * product + ssim_kernels.C1) / (squares + ssim_kernels.C1)
    return (luminance * (2 * (xy - product) + ssim_kernels.C2) / (xx + yy - squares + ssim_kernels.C2)).mean()
