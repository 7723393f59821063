# SPDX-License-Identifier: Apache-2.0
"""Rasterizer of Gaussians on CUDA, with gsplat (Ye et al. 2025)."""

import importlib
import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.render.compositing import as_batch, over_background
from anomalib_pose.render.types import Gaussians, RenderOutput, check_device

logger = logging.getLogger(__name__)

_NEAR = 0.01
_BLUR = 0.3


def gsplat_is_usable() -> bool:
    """Return whether a CUDA device is present and gsplat is installed; does not import gsplat."""
    return torch.cuda.is_available() and importlib.util.find_spec("gsplat") is not None


def _rasterization() -> Any:
    """Import gsplat's ``rasterization`` after checks for CUDA and for gsplat's compiled code.

    No other function imports gsplat: its first call without CUDA tries to compile, and fails with an obscure error.
    """
    try:
        from gsplat import rasterization
    except ImportError as error:
        msg = "The backend 'gsplat' needs gsplat: pip install 'anomalib-pose[cuda]'."
        raise ImportError(msg) from error
    if not torch.cuda.is_available():
        msg = "The backend 'gsplat' needs a CUDA device, and torch.cuda.is_available() is False. Use the backend 'cpu'."
        raise RuntimeError(msg)
    logger.info("Loading gsplat's CUDA code. On first use gsplat may compile it, which takes minutes.")
    compiled = importlib.import_module("gsplat.cuda._backend")
    if getattr(compiled, "_C", compiled) is None:
        msg = (
            "gsplat was installed without its compiled CUDA code, and there is no CUDA toolkit (nvcc) to compile it. "
            "Install the toolkit and set CUDA_HOME, install one of gsplat's prebuilt wheels, or use the backend 'cpu'."
        )
        raise RuntimeError(msg)
    return rasterization


class GsplatRasterizer:
    """CUDA rasterizer: gsplat's classic mode, with the image formation of ``CpuRasterizer``.

    Differentiable in every tensor of the Gaussians, in ``camera_to_world`` and in the background; not in ``K``.
    Computes in float32: float64 tensors are converted, and their images and gradients are float64. gsplat compiles its
    CUDA code on first use, which takes minutes and needs a CUDA toolkit. gsplat's prebuilt wheels need no compilation.

    Raises:
        ImportError: if gsplat is not installed.
        RuntimeError: if there is no CUDA device, or no toolkit to compile gsplat with.
    """

    def __init__(self) -> None:
        self._rasterization = _rasterization()

    def __call__(self, gaussians: Gaussians, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render the Gaussians from one camera or from C cameras; see ``Rasterizer``.

        Args:
            gaussians: N Gaussians on a CUDA device.
            cameras: one unbatched camera (the output has no leading dimension) or a batch of C cameras.
            background: color (3,) or (C, 3) behind the Gaussians; black if None.

        Raises:
            ValueError: if a tensor is on another device, or the background does not fit the cameras.
        """
        check_device(gaussians, cameras, "gsplat", "cuda", "cpu")
        batch = as_batch(cameras)
        rgb, depth, alpha = self._rasterize(gaussians, batch) if len(gaussians) else _empty_images(gaussians, batch)
        output = RenderOutput(over_background(rgb, alpha, background), depth, alpha)
        return output if cameras.batch_shape else output[0]

    def _rasterize(self, gaussians: Gaussians, cameras: Camera) -> tuple[Tensor, Tensor, Tensor]:
        """Return rgb (C, H, W, 3), depth (C, H, W) and alpha (C, H, W) over black."""
        single = gaussians.to(torch.float32)
        images, alpha, _ = self._rasterization(
            means=single.means,
            quats=single.quats,
            scales=single.scales,
            opacities=single.opacities,
            colors=single.colors,
            viewmats=cameras.viewmat.to(torch.float32),
            Ks=cameras.K.detach().to(torch.float32),
            width=cameras.width,
            height=cameras.height,
            near_plane=_NEAR,
            eps2d=_BLUR,
            sh_degree=single.sh_degree,
            packed=False,
            render_mode="RGB+ED",
            rasterize_mode="classic",
        )
        dtype = gaussians.means.dtype
        return images[..., :3].to(dtype), images[..., 3].to(dtype), alpha[..., 0].to(dtype)


def _empty_images(gaussians: Gaussians, cameras: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images of no Gaussians: gsplat does not take empty tensors."""
    empty = gaussians.means.new_zeros(len(cameras), cameras.height, cameras.width)
    return empty[..., None].expand(*empty.shape, 3), empty, empty
