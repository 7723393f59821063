# SPDX-License-Identifier: Apache-2.0
"""Fit of Gaussians to posed images."""

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render import Gaussians, RasterizerName
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
    """A fitted object with its quality.

    Args:
        scene: the object.
        psnr: mean over the held-out views in dB, over white if the foreground is known; NaN without held-out views.
        seconds: duration of the fit in this process.
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
    rasterizer: RasterizerName = "auto",
    decompose: Decomposition = reflectance,
) -> FitResult:
    """Fit Gaussians to an object.

    Args:
        images: RGB in [0, 1]; over white if ``foreground`` is given.
        cameras: C cameras of the images' size.
        foreground: masks of the object in [0, 1], or None if the background belongs to the scene.
        settings: the settings; the default recipe if None.
        points: initial points (N, 3) and their colors (N, 3), which replace the settings' initial points.
        held_out: indices of views that do not take part in the fit and measure the PSNR.
        checkpoint: file that is saved every 500 steps and on an interruption. If the file exists, the fit continues
            from it. The finished fit removes it.
        progress: show a progress bar with step, PSNR of the last views, and number of Gaussians.
        device: device of the fit.
        rasterizer: see ``GaussianScene``.
        decompose: computes the reflectance of images, if the settings ask for reflectance.

    Raises:
        ValueError: if shapes disagree, fewer than two views remain to fit, or the checkpoint belongs to another fit.
    """
    settings = settings or FitSettings()
    check_views(images, cameras, foreground, held_out)
    device = torch.device(device)
    images, cameras = images.to(device), cameras.to(device).to(torch.float32)
    foreground = None if foreground is None else foreground.to(device)
    training_indices = [index for index in range(len(images)) if index not in set(held_out)]
    fitter = _Fitter(images, cameras, foreground, training_indices, settings, points, rasterizer, decompose)
    start = time.perf_counter()
    fitter.run(None if checkpoint is None else Path(checkpoint), progress=progress)
    seconds = time.perf_counter() - start
    scene = fitter.scene()
    psnr = held_out_psnr(scene, images, cameras, held_out, white=foreground is not None)
    logger.info(
        "Fitted %d Gaussians to %d views in %.0f s; PSNR on %d held-out views %.2f dB.",
        len(scene), len(training_indices), seconds, len(held_out), psnr,
    )  # fmt: skip
    return FitResult(scene, psnr, seconds)


class _Fitter(FitLoop):
    """State of the fit of Gaussians."""

    def __init__(
        self,
        images: Tensor,
        cameras: Camera,
        foreground: Tensor | None,
        training_indices: list[int],
        settings: FitSettings,
        points: tuple[Tensor, Tensor] | None,
        rasterizer: RasterizerName,
        decompose: Decomposition,
    ) -> None:
        super().__init__(settings.steps, "Fitting Gaussians")
        self.settings = settings
        self.decompose = decompose
        self.rasterizer_name = rasterizer
        self.rasterize = scene_rasterizer(rasterizer, images.device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        indices = torch.tensor(training_indices, device=images.device)
        images, cameras = images[indices], cameras[indices]
        foreground = None if foreground is None else foreground[indices]
        self.views = make_training_views(images, cameras, foreground)
        self.half_views = make_training_views(images, cameras, foreground, 2) if settings.half_size_share else []
        self.crops: dict[tuple[int, bool], TrainingView] = {}
        self.fingerprint = fingerprint(images, cameras, settings)
        center, self.radius = ball_of_cameras(cameras)
        if points is None:
            points = initial_points(images, cameras, foreground, (center, self.radius), settings, self.generator)
        positions, colors = points[0].to(images), points[1].to(images)
        if settings.reflectance:
            # Points have no neighboring pixels, which a network needs, so the closed form gives their reflectance.
            colors = torch.cat([colors, reflectance(colors.clamp(0, 1)[:, :, None, None])[..., 0, 0]], 1)
        raw = gaussians_at(positions, colors, settings.initial_opacity, settings.sh_degree, self.generator)
        centers = cameras.center
        self.camera_extent = 1.1 * float((centers - centers.mean(0)).norm(dim=-1).max())
        self.parameters = GaussianParameters(raw, self._learning_rates(), settings.sh_degree)
        self.density = self._density_control()
        self.queue: list[int] = []

    def _learning_rates(self) -> dict[str, float]:
        """Return the learning rates of the raw tensors by name."""
        settings = self.settings
        unit = self.camera_extent if settings.density == "adaptive" else self.radius
        return {
            "means": settings.means_rate * unit,
            "quats": settings.quats_rate,
            "log_scales": settings.scales_rate,
            "logit_opacities": settings.opacities_rate,
            "sh": settings.sh_rate,
        }

    def _density_control(self) -> DensityControl:
        settings = self.settings
        if settings.density == "adaptive":
            length = settings.steps / 30_000  # relative to the paper's fit
            return AdaptiveDensity(self.camera_extent, stop=int(15_000 * length), cap=settings.max_gaussians)
        return Relocation(settings.max_gaussians, start=200, stop=int(0.8 * settings.steps))

    def _next_view(self) -> TrainingView:
        """Return the next view of a random order, at the step's size and crop."""
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
        """Fit one view."""
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
        loss = self._photometric_loss(output.rgb, target)
        if settings.reflectance:
            loss = loss + self._photometric_loss(*self._reflectance_pair(gaussians, view.camera, target, background))
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

    def _photometric_loss(self, rendered: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum of L1 and 1 - SSIM of two images (H, W, 3)."""
        weight = self.settings.ssim_weight
        loss = (1 - weight) * (rendered - target).abs().mean()
        return loss + weight * (1 - ssim(rendered, target)) if weight else loss

    def _reflectance_pair(
        self, gaussians: Gaussians, camera: Camera, target: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the rendered reflectance of the Gaussians and the reflectance of the target, both (H, W, 3)."""
        reflective = replace(gaussians, colors=self.parameters.raw["sh"][..., COLORS:])
        rendered = self.rasterize(reflective, camera, reflectance_of_color(background, self.decompose)).rgb
        target_reflectance = self.decompose(target.detach().permute(2, 0, 1)[None].contiguous())
        return rendered, target_reflectance[0].permute(1, 2, 0).contiguous()

    def _decay(self) -> dict[str, float]:
        """Return the factors on the learning rates at this step by name."""
        progress = (self.step + 1) / self.settings.steps
        decay = dict.fromkeys(RAW_NAMES, self.settings.other_decay**progress)
        decay["means"] = self.settings.means_decay**progress
        return decay

    def scene(self) -> GaussianScene:
        """Return the scene in its current state."""
        scene = GaussianScene(self.settings.sh_degree, self.rasterizer_name)
        scene.set_raw(self.parameters.raw)
        return scene

    @property
    def count(self) -> str:
        """Number of Gaussians."""
        return f"{len(self.parameters)} Gaussians"

    def state(self) -> dict[str, Any]:
        """Return the state of the fit."""
        return {
            "queue": self.queue,
            "generator": self.generator.get_state(),
            "parameters": self.parameters.state_dict(),
            "density": self.density.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of the fit."""
        self.queue = state["queue"]
        self.generator.set_state(state["generator"])
        self.parameters = GaussianParameters.from_state(
            state["parameters"], self._learning_rates(), self.settings.sh_degree, self.parameters.device
        )
        self.density.load_state_dict(
            {name: tensor.to(self.parameters.device) for name, tensor in state["density"].items()}
        )
