# SPDX-License-Identifier: Apache-2.0
"""Fit of NeRF's two networks to posed images, with NeRF's schedule."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.volume import camera_rays
from anomalib_pose.scene.fit_loop import FitLoop, check_views, fingerprint, held_out_psnr
from anomalib_pose.scene.hull import object_box
from anomalib_pose.scene.mlp_scene import MlpScene

logger = logging.getLogger(__name__)

_DECAY_STEPS = 500_000


@dataclass(frozen=True)
class MlpFitSettings:
    """Settings of a radiance field's fit. The defaults are OmniposeAD's.

    Args:
        steps: optimizer steps.
        rays: rays per step, all from one image.
        rate: Adam's learning rate, which falls by a factor of ten in 500,000 steps.
        center_steps: steps at the beginning that sample rays from the central half of the images alone.
        samples: samples of the coarse network per ray.
        fine_samples: additional samples of the fine network per ray.
        seed: seed of all random numbers.

    Raises:
        ValueError: if a number is out of range.
    """

    steps: int = 200_000
    rays: int = 1024
    rate: float = 5e-4
    center_steps: int = 500
    samples: int = 64
    fine_samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.rays, self.samples - 2, self.fine_samples) < 1 or self.rate <= 0:
            msg = (
                "A fit needs steps, rays, fine_samples >= 1, samples >= 3 and rate > 0, got "
                f"{self.steps}, {self.rays}, {self.fine_samples}, {self.samples} and {self.rate}."
            )
            raise ValueError(msg)


def fit_mlp(
    images: Float[Tensor, "c 3 h w"],
    cameras: Camera,
    foreground: Float[Tensor, "c h w"] | None = None,
    settings: MlpFitSettings | None = None,
    *,
    held_out: tuple[int, ...] = (),
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> tuple[MlpScene, float]:
    """Fit a radiance field as OmniposeAD does (PAD, NeurIPS 2023).

    Arguments and return values are those of ``fit_voxels``.

    Raises:
        ValueError: if shapes disagree, fewer than two views remain to fit, or the checkpoint belongs to another fit.
    """
    settings = settings or MlpFitSettings()
    check_views(images, cameras, foreground, held_out)
    cameras = cameras.to(images.device).to(torch.float32)
    start = time.perf_counter()
    training_indices = [index for index in range(len(images)) if index not in set(held_out)]
    box = object_box(cameras, foreground)[1:]
    fitter = _MlpFitter(
        images[training_indices], cameras[training_indices], box, settings, white=foreground is not None
    )
    fitter.run(None if checkpoint is None else Path(checkpoint), progress=progress)
    fitter.scene.requires_grad_(requires_grad=False)
    psnr = held_out_psnr(fitter.scene, images, cameras, held_out, white=foreground is not None)
    logger.info(
        "Fitted a radiance field to %d views in %.0f s; PSNR on %d held-out views %.2f dB.",
        len(training_indices), time.perf_counter() - start, len(held_out), psnr,
    )  # fmt: skip
    return fitter.scene, psnr


class _MlpFitter(FitLoop):
    """State of the fit of two networks."""

    def __init__(
        self, images: Tensor, cameras: Camera, box: tuple[Tensor, Tensor], settings: MlpFitSettings, *, white: bool
    ) -> None:
        super().__init__(settings.steps, "Fitting a radiance field")
        self.settings = settings
        self.images, self.cameras = images, cameras
        self.fingerprint = fingerprint(images, cameras, settings)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.background = torch.full((3,), float(white), device=images.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            scene = MlpScene(settings.samples, settings.fine_samples)
        self.scene = scene.to(images.device)
        self.scene.lower, self.scene.upper = box
        self.scene.fitted = torch.tensor(data=True, device=images.device)
        self.optimizer = torch.optim.Adam(self.scene.parameters(), lr=settings.rate)

    def _sample_pixels(self) -> Tensor:
        """Sample random pixels of one image, as indices row by row."""
        height, width = self.images.shape[-2:]
        rows, columns = (0, height), (0, width)
        if self.step < self.settings.center_steps:
            rows, columns = (height // 4, height - height // 4), (width // 4, width - width // 4)
        v = torch.randint(*rows, (self.settings.rays,), generator=self.generator)
        u = torch.randint(*columns, (self.settings.rays,), generator=self.generator)
        return (v * width + u).to(self.images.device)

    def one_step(self) -> None:
        """Fit random rays of one view."""
        index = int(torch.randint(len(self.images), (), generator=self.generator))
        pixels = self._sample_pixels()
        target = self.images[index].flatten(1).T[pixels]
        rays = camera_rays(self.cameras[index], pixels)
        coarse_residual, fine_residual = (
            rgb + (1 - alpha)[:, None] * self.background - target
            for rgb, _, alpha in self.scene.render_rays(rays, self.generator)
        )
        self.optimizer.zero_grad()
        (coarse_residual.square().mean() + fine_residual.square().mean()).backward()
        self.optimizer.param_groups[0]["lr"] = self.settings.rate * 0.1 ** (self.step / _DECAY_STEPS)
        self.optimizer.step()
        self.note_psnr(fine_residual.detach())

    @property
    def count(self) -> str:
        """Number of parameters."""
        return f"{sum(parameter.numel() for parameter in self.scene.parameters())} parameters"

    def state(self) -> dict[str, Any]:
        """Return the state of the fit."""
        return {
            "generator": self.generator.get_state(),
            "scene": self.scene.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of the fit."""
        self.generator.set_state(state["generator"])
        self.scene.load_state_dict(state["scene"])
        self.optimizer.load_state_dict(state["optimizer"])
