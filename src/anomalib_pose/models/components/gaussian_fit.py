# SPDX-License-Identifier: Apache-2.0
"""Fit of the models whose scene consists of Gaussians."""

from pathlib import Path

from torch import Tensor, nn

from anomalib_pose.geometry import Camera
from anomalib_pose.render import RasterizerName
from anomalib_pose.render.reflectance import Decomposition, reflectance
from anomalib_pose.scene import FitSettings, GaussianScene, fit_gaussians


class GaussianFit:
    """Fit of a Gaussian scene in place.

    Args:
        settings: settings of the fit.
        checkpoint: file from which an interrupted fit continues, or None.
        rasterizer: see ``GaussianScene``.
        progress: show a progress bar.
        decompose: see ``fit_gaussians``.
    """

    def __init__(
        self,
        settings: FitSettings,
        checkpoint: str | None,
        rasterizer: RasterizerName,
        *,
        progress: bool,
        decompose: Decomposition = reflectance,
    ) -> None:
        self.settings = settings
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.rasterizer = rasterizer
        self.progress = progress
        self.decompose = decompose

    def __call__(
        self,
        scene: nn.Module,
        images: Tensor,
        cameras: Camera,
        foreground: Tensor | None,
        held_out: tuple[int, ...],
    ) -> float:
        """Fit the scene and return the PSNR on the held-out views in dB.

        Raises:
            TypeError: if the scene is not a ``GaussianScene``.
        """
        if not isinstance(scene, GaussianScene):
            msg = f"A GaussianFit fits a GaussianScene, got a {type(scene).__name__}."
            raise TypeError(msg)
        result = fit_gaussians(
            images,
            cameras,
            foreground,
            self.settings,
            held_out=held_out,
            checkpoint=self.checkpoint,
            progress=self.progress,
            device=images.device,
            rasterizer=self.rasterizer,
            decompose=self.decompose,
        )
        scene.set_raw(result.scene.raw)
        return result.psnr
