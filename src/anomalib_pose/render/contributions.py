# SPDX-License-Identifier: Apache-2.0
"""Contribution of each Gaussian to an image."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.types import Gaussians, Rasterizer


def gaussian_contributions(gaussians: Gaussians, rasterizer: Rasterizer, camera: Camera) -> Float[Tensor, " n"]:
    """Sum each Gaussian's compositing weights over the pixels of one image.

    The sum is the derivative of the image's total brightness with respect to the Gaussian's brightness. It does not
    depend on the colors.

    Args:
        gaussians: all Gaussians of the scene (N); they occlude each other.
        rasterizer: rasterizer that is differentiable in the colors.
        camera: one camera.

    Returns:
        sums (N,), in pixels.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        colors = torch.zeros_like(gaussians.means, requires_grad=True)
        rendering = rasterizer(replace(gaussians, colors=colors, sh_degree=None), camera)
        (weights,) = torch.autograd.grad(rendering.rgb[..., 0].sum(), colors)
    return weights[:, 0]
