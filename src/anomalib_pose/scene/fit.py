# SPDX-License-Identifier: Apache-2.0
"""Fitting Gaussians to posed images."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render import Gaussians
from anomalib_pose.render.reflectance import Decomposition, reflectance, reflectance_of_color
from anomalib_pose.render.ssim import ssim
from anomalib_pose.scene.density import AdaptiveDensity, DensityControl, Relocation
from anomalib_pose.scene.fit_loop import FitLoop, check_views, fingerprint, held_out_psnr
from anomalib_pose.scene.gaussian_scene import COLORS, RAW_NAMES, GaussianScene, scene_rasterizer
from anomalib_pose.scene.hull import ball_of_cameras
from anomalib_pose.scene.initial_gaussians import gaussians_at, initial_points
from anomalib_pose.scene.parameters import GaussianParameters
from anomalib_pose.scene.settings import FitSettings
from anomalib_pose.scene.training_views import TrainingView, make_training_views

logger = logging.getLogger(__name__)

_FULL_VIEW_EVERY = 10
_CROP_MARGIN = 8


@dataclass(frozen=True)
class FitResult:
    """A fitted object and how good it is.

    Args:
        scene: the object.
        psnr: mean over the held-out views in dB, over white where the foreground is known; NaN without held-out views.
        seconds: what the fit took, in this process.
    """

    scene: GaussianScene
    psnr: float
    seconds: float


def fit_gaussians(
    images: Float[Tensor, "c 3 h w"],
    cameras: Camera,
    foreground: Float[Tensor, "c h w"] | None = None,
    settings: FitSettings | None = None,
    *,
    points: tuple[Tensor, Tensor] | None = None,
    held_out: tuple[int, ...] = (),
    checkpoint: str | Path | None = None,
    progress: bool = True,
    device: torch.device | str = "cpu",
    rasterizer: str = "auto",
    decompose: Decomposition = reflectance,
) -> FitResult:
    """Fit Gaussians to an object.

    Args:
        images: RGB in [0, 1]; over white where ``foreground`` is given.
        cameras: C cameras of the images' size.
        foreground: masks of the object in [0, 1], or None if the background belongs to the scene.
        settings: the recipe; our default if None.
        points: initial points (N, 3) and their colors (N, 3), instead of what the settings choose.
        held_out: indices of views that are not fitted but measure the PSNR.
        checkpoint: file that is saved every 500 steps and on an interruption, continued from if it exists, and removed
            when the fit is done.
        progress: show a bar with step, PSNR of the last views, and number of Gaussians.
        device: where to fit.
        rasterizer: see ``GaussianScene``.
        decompose: how images are taken to what they reflect, where the settings ask for that.

    Raises:
        ValueError: if shapes disagree, nothing is left to fit, or the checkpoint belongs to another fit.
    """
    settings = settings or FitSettings()
    check_views(images, cameras, foreground, held_out)
    device = torch.device(device)
    images, cameras = images.to(device), cameras.to(device).to(torch.float32)
    foreground = None if foreground is None else foreground.to(device)
    fitted = [index for index in range(len(images)) if index not in set(held_out)]
    fitter = _Fitter(images, cameras, foreground, fitted, settings, points, rasterizer, decompose)
    start = time.perf_counter()
    fitter.run(None if checkpoint is None else Path(checkpoint), progress=progress)
    seconds = time.perf_counter() - start
    scene = fitter.scene()
    psnr = held_out_psnr(scene, images, cameras, held_out, white=foreground is not None)
    logger.info(
        "Fitted %d Gaussians to %d views in %.0f s; PSNR on %d held-out views %.2f dB.",
        len(scene), len(fitted), seconds, len(held_out), psnr,
    )  # fmt: skip
    return FitResult(scene, psnr, seconds)


class _Fitter(FitLoop):
    """Gaussians between the steps of their fit."""

    def __init__(
        self,
        images: Tensor,
        cameras: Camera,
        foreground: Tensor | None,
        fitted: list[int],
        settings: FitSettings,
        points: tuple[Tensor, Tensor] | None,
        rasterizer: str,
        decompose: Decomposition,
    ) -> None:
        super().__init__(settings.steps, "Fitting Gaussians")
        self.settings = settings
        self.decompose = decompose
        self.rasterizer_name = rasterizer
        self.rasterize = scene_rasterizer(rasterizer, images.device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        chosen = torch.tensor(fitted, device=images.device)
        images, cameras = images[chosen], cameras[chosen]
        foreground = None if foreground is None else foreground[chosen]
        self.views = make_training_views(images, cameras, foreground)
        self.half_views = make_training_views(images, cameras, foreground, 2) if settings.half_size_share else []
        self.crops: dict[tuple[int, bool], TrainingView] = {}
        self.fingerprint = fingerprint(images, cameras, settings)
        center, self.radius = ball_of_cameras(cameras)
        if points is None:
            points = initial_points(images, cameras, foreground, (center, self.radius), settings, self.generator)
        at, colors = points[0].to(images), points[1].to(images)
        if settings.reflectance:
            # the closed form does for a start: points have no neighbors, which a network would want to see
            colors = torch.cat([colors, reflectance(colors.clamp(0, 1)[:, :, None, None])[..., 0, 0]], 1)
        raw = gaussians_at(at, colors, settings.initial_opacity, settings.sh_degree, self.generator)
        eyes = cameras.center
        self.camera_extent = 1.1 * float((eyes - eyes.mean(0)).norm(dim=-1).max())
        self.parameters = GaussianParameters(raw, self._rates(), settings.sh_degree)
        self.density = self._density()
        self.queue: list[int] = []

    def _rates(self) -> dict[str, float]:
        settings = self.settings
        unit = self.camera_extent if settings.density == "adaptive" else self.radius
        return {
            "means": settings.means_rate * unit,
            "quats": settings.quats_rate,
            "log_scales": settings.scales_rate,
            "logit_opacities": settings.opacities_rate,
            "sh": settings.sh_rate,
        }

    def _density(self) -> DensityControl:
        settings = self.settings
        if settings.density == "adaptive":
            share = settings.steps / 30_000
            return AdaptiveDensity(self.camera_extent, stop=int(15_000 * share), cap=settings.max_gaussians)
        return Relocation(settings.max_gaussians, start=200, stop=int(0.8 * settings.steps))

    def _next_view(self) -> TrainingView:
        if not self.queue:
            self.queue = torch.randperm(len(self.views), generator=self.generator).tolist()
        index = self.queue.pop()
        half = self.step < self.settings.half_size_share * self.settings.steps
        view = (self.half_views if half else self.views)[index]
        if not self.settings.crop or view.foreground is None or self.step % _FULL_VIEW_EVERY == 0:
            return view
        if (index, half) not in self.crops:
            self.crops[index, half] = view.cropped(_CROP_MARGIN)
        return self.crops[index, half]

    def one_step(self) -> None:
        """One view."""
        settings = self.settings
        view = self._next_view()
        gaussians = self.parameters.activated()
        background = torch.ones(3, device=self.parameters.device)
        if view.foreground is None:
            background = torch.zeros_like(background)
        elif float(torch.rand((), generator=self.generator)) < settings.random_background:
            background = torch.rand(3, generator=self.generator).to(background)
        output = self.rasterize(gaussians, view.camera, background)
        target = view.target(background, output.alpha)
        loss = self._photometric(output.rgb, target)
        if settings.reflectance:
            loss = loss + self._photometric(*self._reflected(gaussians, view.camera, target, background))
        if settings.alpha_weight and view.foreground is not None:
            outside = (1 - view.foreground) * (1 - view.band)  # type: ignore[operator]
            loss = loss + settings.alpha_weight * (output.alpha * outside).mean()
        if settings.opacity_weight:
            loss = loss + settings.opacity_weight * gaussians.opacities.mean()
        if settings.scale_weight:
            loss = loss + settings.scale_weight * gaussians.scales.mean() / self.radius
        loss.backward()
        self.note_psnr((output.rgb - target).detach())
        self.density.before_step(self.parameters, view.camera, self.step + 1)
        self.parameters.step(self._decay())
        self.density.after_step(self.parameters, self.step + 1, self.generator)

    def _photometric(self, rendered: Tensor, target: Tensor) -> Tensor:
        """L1 and SSIM of two images (H, W, 3), in the shares of the recipe."""
        weight = self.settings.ssim_weight
        loss = (1 - weight) * (rendered - target).abs().mean()
        return loss + weight * (1 - ssim(rendered, target)) if weight else loss

    def _reflected(
        self, gaussians: Gaussians, camera: Camera, target: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the Gaussians reflect as a camera sees them, and what the image to be fitted there does (H, W, 3)."""
        drawn = replace(gaussians, colors=self.parameters.raw["sh"][..., COLORS:])
        rendered = self.rasterize(drawn, camera, reflectance_of_color(background, self.decompose)).rgb
        wanted = self.decompose(target.detach().permute(2, 0, 1)[None].contiguous())
        return rendered, wanted[0].permute(1, 2, 0).contiguous()

    def _decay(self) -> dict[str, float]:
        share = (self.step + 1) / self.settings.steps
        decay = dict.fromkeys(RAW_NAMES, self.settings.other_decay**share)
        decay["means"] = self.settings.means_decay**share
        return decay

    def scene(self) -> GaussianScene:
        """What has been fitted so far."""
        scene = GaussianScene(self.settings.sh_degree, self.rasterizer_name)
        scene.set_raw(self.parameters.raw)
        return scene

    @property
    def count(self) -> str:
        """Number of Gaussians."""
        return f"{len(self.parameters)} Gaussians"

    def state(self) -> dict[str, Any]:
        """What a fit continues from."""
        return {
            "queue": self.queue,
            "generator": self.generator.get_state(),
            "parameters": self.parameters.state_dict(),
            "density": self.density.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.queue = state["queue"]
        self.generator.set_state(state["generator"])
        self.parameters = GaussianParameters.from_state(
            state["parameters"], self._rates(), self.settings.sh_degree, self.parameters.device
        )
        self.density.load_state_dict({k: v.to(self.parameters.device) for k, v in state["density"].items()})
