# SPDX-License-Identifier: Apache-2.0
"""An object made of 3D Gaussians."""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.buffers import resize_buffers
from anomalib_pose.geometry import Camera
from anomalib_pose.render import Gaussians, Rasterizer, RenderOutput, make_rasterizer

RAW_NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh")
COLORS = 3
"""Channels of ``sh`` that are color; as many more hold the reflectance, where it was fitted."""
_ROBUST_SHARE = 0.98


class GaussianScene(nn.Module):
    """A fitted object made of Gaussians, kept as buffers of any count (Kerbl et al. 2023, section 4).

    Buffers, raw; ``activated`` gives what is drawn:
        means (N, 3) world frame; quats (N, 4) wxyz, any length; log_scales (N, 3); logit_opacities (N,);
        sh (N, K, 3) spherical harmonics coefficients of the color, K = (sh_degree + 1)², or (N, K, 6) with those of
        the reflectance after them; counts (2,): how many Gaussians do for small images and for larger ones, 0 where
        that is not known (``arrange``).

    Args:
        sh_degree: degree 0..3 of the colors. The pose refinement of SplatPose needs 0, where color does not depend on
            the direction of view.
        rasterizer: ``"auto"``, ``"cpu"`` or ``"gsplat"``; ``"auto"`` follows the device of the buffers.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    logit_opacities: Tensor
    sh: Tensor
    counts: Tensor

    def __init__(self, sh_degree: int = 0, rasterizer: str = "auto") -> None:
        super().__init__()
        self.sh_degree = sh_degree
        self.rasterizer_name = rasterizer
        self.rasterizer: Rasterizer | None = None
        for name, shape in self.shapes(0, sh_degree).items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.long))

    @staticmethod
    def shapes(count: int, sh_degree: int, channels: int = COLORS) -> dict[str, tuple[int, ...]]:
        """Shapes of the raw tensors of ``count`` Gaussians; ``channels`` is 6 with reflectance."""
        return {
            "means": (count, 3),
            "quats": (count, 4),
            "log_scales": (count, 3),
            "logit_opacities": (count,),
            "sh": (count, (sh_degree + 1) ** 2, channels),
        }

    def set_raw(self, raw: dict[str, Tensor]) -> None:
        """Take over raw tensors, named as the buffers, of any count, with reflectance or without.

        Raises:
            ValueError: if one is missing, has a wrong shape, or is not finite.
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
        """The first so many Gaussians, not copied; see ``arrange``."""
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
        """The raw tensors by name."""
        return {name: getattr(self, name) for name in RAW_NAMES}

    def activated(self) -> Gaussians:
        """The Gaussians as a rasterizer takes them, in their colors."""
        return activate(self.raw, self.sh_degree)

    @property
    def reflective(self) -> bool:
        """Whether it was fitted with its reflectance, too."""
        return bool(self.sh.shape[2] > COLORS)

    def render(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Images of the object; differentiable in the cameras' poses.

        Args:
            cameras: one camera, or C of them, on any device.
            background: color (3,) behind the object; black if None.

        Raises:
            ValueError: if the scene has not been fitted.
        """
        return self._draw(self.activated(), cameras, background)

    def render_reflectance(self, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Images of what the object reflects, where it was fitted with that; see ``render``.

        Args:
            cameras: one camera, or C of them, on any device.
            background: reflectance (3,) of what is behind the object; black if None.

        Raises:
            ValueError: if the scene has not been fitted, or without its reflectance.
        """
        if not self.reflective:
            msg = "This scene holds colors alone: fit it with FitSettings(reflectance=True)."
            raise ValueError(msg)
        return self._draw(replace(self.activated(), colors=self.sh[..., COLORS:]), cameras, background)

    def _draw(self, gaussians: Gaussians, cameras: Camera, background: Tensor | None) -> RenderOutput:
        if not len(self):
            msg = "This scene holds no Gaussians: fit it, load a checkpoint, or read a .ply first."
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
        return float(distance.quantile(_ROBUST_SHARE)) if len(distance) < 2**24 else float(distance.max())

    def _opaque_means(self) -> Tensor:
        opaque = self.means[self.logit_opacities > 0]
        return opaque if len(opaque) else self.means

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let a checkpoint decide how many Gaussians there are, and how their colors depend on the direction.

        Older ones know of no counts.
        """
        state_dict.setdefault(prefix + "counts", torch.zeros_like(self.counts))
        resize_buffers(self, RAW_NAMES, state_dict, prefix)
        self.sh_degree = math.isqrt(self.sh.shape[1]) - 1
        self.rasterizer = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, *args: Any, **kwargs: Any) -> "GaussianScene":
        """Moving to another device asks for the rasterizer of that device."""
        self.rasterizer = None
        return super()._apply(*args, **kwargs)


def activate(raw: dict[str, Tensor], sh_degree: int) -> Gaussians:
    """Gaussians to draw in their colors from raw tensors: scales through exp, opacities through the sigmoid."""
    return Gaussians(
        raw["means"],
        raw["quats"],
        raw["log_scales"].exp(),
        raw["logit_opacities"].sigmoid(),
        raw["sh"][..., :COLORS],
        sh_degree,
    )


def scene_rasterizer(name: str, device: torch.device) -> Rasterizer:
    """Rasterizer for tensors on a device: with ``"auto"``, the CPU's own on a CPU and gsplat on CUDA."""
    if name != "auto":
        return make_rasterizer(name)
    return make_rasterizer("gsplat" if device.type == "cuda" else "cpu")
