# SPDX-License-Identifier: Apache-2.0
"""How much of each Gaussian an image shows."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.types import Gaussians, Rasterizer


def seen_weights(gaussians: Gaussians, rasterizer: Rasterizer, camera: Camera) -> Float[Tensor, " n"]:
    """Weights of Gaussians in the blending of an image, each summed over the pixels.

    It is what the image's sum changes by with the brightness of a Gaussian, whatever the colors.

    Args:
        gaussians: all that are drawn.
        rasterizer: draws them.
        camera: one camera.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        colors = torch.zeros_like(gaussians.means, requires_grad=True)
        drawn = rasterizer(replace(gaussians, colors=colors, sh_degree=None), camera)
        (weights,) = torch.autograd.grad(drawn.rgb[..., 0].sum(), colors)
    return weights[:, 0]
