# SPDX-License-Identifier: Apache-2.0
"""Input, output and protocol of a rasterizer: ``Gaussians``, ``RenderOutput`` and ``Rasterizer``."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from anomalib_pose.geometry.camera import Camera

_TENSORS = ("means", "quats", "scales", "opacities", "colors")


@dataclass(frozen=True)
class Gaussians:
    """Anisotropic 3D Gaussians with activated values, ready to rasterize (Kerbl et al. 2023, section 4).

    Args:
        means: centers (N, 3) in the world frame.
        quats: orientations (N, 4), wxyz, of any non-zero length: the rasterizer normalizes them.
        scales: standard deviations (N, 3) along the Gaussian's own axes, scene units, > 0.
        opacities: peak opacities (N,) in (0, 1).
        colors: RGB (N, 3), or spherical harmonics coefficients (N, K, 3) with K >= (sh_degree + 1)².
        sh_degree: degree 0..3 up to which ``colors`` are used, or None if ``colors`` are RGB.

    Raises:
        ValueError: if shapes disagree or ``sh_degree`` does not fit ``colors``.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    sh_degree: int | None = None

    def __post_init__(self) -> None:
        count = self.means.shape[0]
        expected = {"means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,)}
        for name, shape in expected.items():
            actual_shape = tuple(getattr(self, name).shape)
            if actual_shape != shape:
                msg = f"Gaussians.{name} should have shape {shape}, got {actual_shape}."
                raise ValueError(msg)
        self._check_colors(count)

    def _check_colors(self, count: int) -> None:
        shape = tuple(self.colors.shape)
        if self.sh_degree is None:
            if shape != (count, 3):
                msg = f"Gaussians.colors without sh_degree should be RGB of shape {(count, 3)}, got {shape}."
                raise ValueError(msg)
            return
        if self.sh_degree not in range(4):
            msg = f"sh_degree should be None or 0..3, got {self.sh_degree}."
            raise ValueError(msg)
        coefficient_count = (self.sh_degree + 1) ** 2
        if len(shape) != 3 or shape[0] != count or shape[1] < coefficient_count or shape[2] != 3:
            msg = (
                f"Gaussians.colors with sh_degree={self.sh_degree} should have shape "
                f"({count}, K >= {coefficient_count}, 3), got {shape}."
            )
            raise ValueError(msg)

    def __len__(self) -> int:
        """Return the number of Gaussians."""
        return self.means.shape[0]

    def __getitem__(self, index: Tensor) -> "Gaussians":
        """Select Gaussians by an index tensor or a mask (N,)."""
        return replace(self, **{name: getattr(self, name)[index] for name in _TENSORS})

    def to(self, target: torch.device | torch.dtype | str) -> "Gaussians":
        """Return the Gaussians on a device or in a dtype."""
        return replace(self, **{name: getattr(self, name).to(target) for name in _TENSORS})


@dataclass(frozen=True)
class RenderOutput:
    """Images of one camera, or of C cameras with a leading dimension C.

    Args:
        rgb: color (H, W, 3) or (C, H, W, 3), composited over the background where one was given.
        depth: expected depth along the optical axis (H, W) or (C, H, W), scene units: the sum of weight times z over
            the sum of weights; 0 where ``alpha`` is 0.
        alpha: accumulated opacity (H, W) or (C, H, W) in [0, 1].
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor

    def __getitem__(self, index: int | slice | Tensor) -> "RenderOutput":
        """Index the first dimension of all three images."""
        return RenderOutput(self.rgb[index], self.depth[index], self.alpha[index])


@runtime_checkable
class Rasterizer(Protocol):
    """Renderer of Gaussians; differentiable in all their tensors, in ``camera_to_world`` and in the background."""

    def __call__(self, gaussians: Gaussians, cameras: Camera, background: Tensor | None = None) -> RenderOutput:
        """Render the Gaussians from one camera or from C cameras.

        Args:
            gaussians: N Gaussians in the world frame.
            cameras: one unbatched camera (the output has no leading dimension) or a batch of C cameras.
            background: color (3,) or (C, 3) behind the Gaussians; black if None.

        Returns:
            one image set, or C of them, see ``RenderOutput``.
        """
        ...


def check_device(gaussians: Gaussians, cameras: Camera, backend: str, device: str, alternative: str) -> None:
    """Check that Gaussians and cameras are on a rasterizer's type of device.

    Args:
        gaussians: Gaussians to render.
        cameras: cameras to render from.
        backend: name of the rasterizer, for the message.
        device: type of device that the rasterizer runs on.
        alternative: backend that the message suggests instead.

    Raises:
        ValueError: if a tensor is on another type of device.
    """
    for name, tensor in (("gaussians", gaussians.means), ("cameras", cameras.camera_to_world)):
        if tensor.device.type != device:
            msg = (
                f"The {backend} rasterizer was given {name} on {tensor.device}. Move them with .to({device!r}), "
                f"or use make_rasterizer({alternative!r})."
            )
            raise ValueError(msg)
