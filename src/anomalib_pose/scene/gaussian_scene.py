# SPDX-License-Identifier: Apache-2.0
"""A scene of 3D Gaussians."""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.geometry import Camera
from anomalib_pose.render import Gaussians, Rasterizer, RasterizerName, RenderOutput, make_rasterizer

RAW_NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh")
COLORS = 3
"""Number of color channels of ``sh``; a scene with reflectance has three more."""

_EXTENT_QUANTILE = 0.98


class GaussianScene(nn.Module):
    """A fitted object of N Gaussians, stored as buffers of any count (Kerbl et al. 2023, section 4).

    Buffers, raw; ``activated`` returns the values for a rasterizer:
        means (N, 3) world frame; quats (N, 4) wxyz, any length; log_scales (N, 3); logit_opacities (N,);
        sh (N, K, 3) spherical harmonics coefficients of the color, K = (sh_degree + 1)², or (N, K, 6) with the
        coefficients of the reflectance in the last three channels; counts (2,): number of Gaussians that small and
        larger images need, 0 if unknown (``sort_by_contribution``).

    Args:
        sh_degree: degree 0..3 of the colors. The pose refinement of SplatPose needs 0, where the color does not depend
            on the viewing direction.
        rasterizer: ``"auto"``, ``"cpu"`` or ``"gsplat"``; ``"auto"`` follows the device of the buffers.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh: Tensor
    counts: Tensor

    def __init__(self, sh_degree: int = 0, rasterizer: RasterizerName = "auto") -> None:
        super().__init__()
        self.sh_degree = sh_degree
        self.rasterizer_name = rasterizer
        self.rasterizer: Rasterizer | None = None
        for name, shape in self.shapes(0, sh_degree).items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))

    @staticmethod
    def shapes(count: int, sh_degree: int, channels: int = COLORS) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the raw tensors of ``count`` Gaussians; ``channels`` is 6 with reflectance."""
        return {
            "means": (count, 3),
            "quats": (count, 4),
            "log_scales": (count, 3),
            "logit_opacities": (count,),
            "sh": (count, (sh_degree + 1) ** 2, channels),
        }

    def set_raw(self, raw: dict[str, Tensor]) -> None:
        """Replace all Gaussians.

        Args:
            raw: raw tensors by the name of their buffer, of any count, with or without reflectance.

        Raises:
            ValueError: if a tensor is missing, has a wrong shape, or is not finite.
        """
        if set(raw) != set(RAW_NAMES):
            msg = f"A GaussianScene consists of {', '.join(RAW_NAMES)}, got {', '.join(sorted(raw))}."
            raise ValueError(msg)
        channels = 2 * COLORS if raw["sh"].shape[-1] == 2 * COLORS else COLORS
        for name, shape in self.shapes(len(raw["means"]), self.sh_degree, channels).items():
            if tuple(raw[name].shape) != shape or not bool(raw[name].isfinite().all()):
                msg = f"{name} should be finite and of shape {shape}, got {tuple(raw[name].shape)}."
                raise ValueError(msg)
        for name in RAW_NAMES:
            setattr(self, name, raw[name].detach().clone())
        self.counts = torch.zeros_like(self.counts)

    def first(self, count: int) -> "GaussianScene":
        """Return a scene of the first ``count`` Gaussians without a copy; see ``sort_by_contribution``."""
        scene = GaussianScene(self.sh_degree, self.rasterizer_name)
        scene.rasterizer = self.rasterizer
        for name in RAW_NAMES:
            setattr(scene, name, getattr(self, name)[:count])
        return scene

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.means)

    @property
    def raw(self) -> dict[str, Tensor]:
        """Raw tensors by name."""
        return {name: getattr(self, name) for name in RAW_NAMES}

    def activated(self) -> Gaussians:
        """Return the Gaussians for a rasterizer, with their colors."""
        return activate(self.raw, self.sh_degree)

    @property
    def reflective(self) -> bool:
        """Whether the scene holds the reflectance besides the colors."""
        return bool(self.sh.shape[2] > COLORS)

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render images of the object; differentiable in the cameras' poses.

        Args:
            cameras: one camera, or C of them, on any device.
            background: color (3,) behind the object; black if None.

        Raises:
            ValueError: if the scene has not been fitted.
        """
        return self._rasterize(self.activated(), cameras, background)

    def render_reflectance(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render images of the object's reflectance; see ``render``.

        Args:
            cameras: one camera, or C of them, on any device.
            background: reflectance (3,) of the background; black if None.

        Raises:
            ValueError: if the scene has not been fitted, or was fitted without its reflectance.
        """
        if not self.reflective:
            msg = "This scene holds colors alone. Fit it with FitSettings(reflectance=True)."
            raise ValueError(msg)
        return self._rasterize(replace(self.activated(), colors=self.sh[..., COLORS:]), cameras, background)

    def _rasterize(self, gaussians: Gaussians, cameras: Camera, background: Tensor | None) -> RenderOutput:
        if not len(self):
            msg = "This scene holds no Gaussians. Fit it, load a checkpoint, or read a .ply first."
            raise ValueError(msg)
        if self.rasterizer is None:
            self.rasterizer = scene_rasterizer(self.rasterizer_name, self.means.device)
        return self.rasterizer(gaussians, cameras.to(self.means.device), background)

    @property
    def center(self) -> Float[Tensor, "3"]:
        """Median of the opaque Gaussians' centers, world frame; the origin of an empty scene."""
        if not len(self):
            return self.means.new_zeros(3)
        return self._opaque_means().median(0).values

    @property
    def extent(self) -> float:
        """Radius of the ball around the center that holds 98 % of the opaque Gaussians, scene units; 0 if empty."""
        if not len(self):
            return 0.0
        distance = (self._opaque_means() - self.center).norm(dim=-1)
        return float(distance.quantile(_EXTENT_QUANTILE)) if len(distance) < 2**24 else float(distance.max())

    def _opaque_means(self) -> Tensor:
        opaque = self.means[self.logit_opacities > 0]
        return opaque if len(opaque) else self.means

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of Gaussians and the degree of their colors from the checkpoint.

        Checkpoints of earlier versions have no ``counts``.
        """
        state_dict.setdefault(prefix + "counts", torch.zeros_like(self.counts))
        resize_buffers(self, RAW_NAMES, state_dict, prefix)
        self.sh_degree = math.isqrt(self.sh.shape[1]) - 1
        self.rasterizer = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, *args: Any, **kwargs: Any) -> "GaussianScene":
        """Drop the rasterizer, which belongs to the old device."""
        self.rasterizer = None
        return super()._apply(*args, **kwargs)


def activate(raw: dict[str, Tensor], sh_degree: int) -> Gaussians:
    """Convert raw tensors to Gaussians with their colors: exp of the log-scales, sigmoid of the logit-opacities."""
    return Gaussians(
        raw["means"],
        raw["quats"],
        raw["log_scales"].exp(),
        raw["logit_opacities"].sigmoid(),
        raw["sh"][..., :COLORS],
        sh_degree,
    )


def scene_rasterizer(name: RasterizerName, device: torch.device) -> Rasterizer:
    """Return the rasterizer of a name; ``"auto"`` is the CPU rasterizer for a CPU device and gsplat for CUDA."""
    if name != "auto":
        return make_rasterizer(name)
    return make_rasterizer("gsplat" if device.type == "cuda" else "cpu")
