# SPDX-License-Identifier: Apache-2.0
"""Density control: changes of the number and the positions of Gaussians during a fit."""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.scene.parameters import GaussianParameters

_MAX_COPIES = 51
_DEAD_OPACITY = 0.005


def logit(probability: Tensor) -> Tensor:
    """Return the inverse of the sigmoid."""
    return torch.log(probability / (1 - probability))


@runtime_checkable
class DensityControl(Protocol):
    """Changes Gaussians during a fit: called before each optimizer step, with gradients, and after it."""

    def before_step(self, parameters: GaussianParameters, camera: Camera, step: int) -> None:
        """Record the gradients of a step."""
        ...

    def after_step(self, parameters: GaussianParameters, step: int, generator: torch.Generator) -> None:
        """Change the Gaussians."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of ``state_dict``."""
        ...


def split_evenly(
    opacity: Float[Tensor, " k"], scale: Float[Tensor, "k 3"], copies: Tensor
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k 3"]]:
    """Return opacity and scale of equal Gaussians at one place that together look like one (MCMC, equation 9).

    Args:
        opacity: opacities of K original Gaussians, in (0, 1).
        scale: scales of the original Gaussians, > 0.
        copies: number of copies (K,) that replace each original, 1 or more; capped at 51.
    """
    copies = copies.clamp(max=_MAX_COPIES)
    new_opacity = 1 - (1 - opacity).pow(1 / copies)
    max_copies = int(copies.max()) if len(copies) else 1
    denominator = torch.zeros_like(opacity)
    for i in range(1, max_copies + 1):
        inner = torch.zeros_like(opacity, dtype=torch.float64)
        for k in range(i):
            inner += math.comb(i - 1, k) * (-1) ** k * new_opacity.double().pow(k + 1) / math.sqrt(k + 1)
        denominator += torch.where(i <= copies, inner, 0).to(opacity)
    return new_opacity, scale * (opacity / denominator)[:, None]


class Relocation:
    """Density control with a fixed budget: transparent Gaussians move to opaque ones, and the number grows to a cap.

    This follows Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo" (2024), section 4. Relocation
    and growth do not change the image. Noise moves the centers of transparent Gaussians, so that they explore.

    Args:
        cap: largest number of Gaussians.
        start: step of the first relocation.
        stop: last step of relocation and noise.
        every: steps between relocations.
        growth: fraction by which the number grows at each relocation.
        noise: size of the noise, relative to a Gaussian's own size.
    """

    def __init__(
        self, cap: int, start: int, stop: int, every: int = 100, growth: float = 0.1, noise: float = 0.5
    ) -> None:
        self.cap, self.start, self.stop, self.every = cap, start, stop, every
        self.growth, self.noise = growth, noise

    def before_step(self, parameters: GaussianParameters, camera: Camera, step: int) -> None:
        """Ignore the gradients."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Ignore the empty state."""

    @torch.no_grad()
    def after_step(self, parameters: GaussianParameters, step: int, generator: torch.Generator) -> None:
        """Relocate and grow every ``every`` steps, and add noise to transparent Gaussians in each step."""
        if step % self.every == 0 and self.start <= step <= self.stop:
            self._relocate(parameters, generator)
        if step <= self.stop:
            self._add_noise(parameters, generator, 1 - step / (self.stop + 1))

    def _relocate(self, parameters: GaussianParameters, generator: torch.Generator) -> None:
        """Replace dead Gaussians, and add new ones, by copies of Gaussians sampled by their opacity."""
        opacity = parameters.raw["logit_opacities"].sigmoid()
        dead = (opacity <= _DEAD_OPACITY).nonzero()[:, 0]
        growth = min(self.cap - len(parameters), int(self.growth * len(parameters)))
        count = len(dead) + max(0, growth)
        alive = opacity.where(opacity > _DEAD_OPACITY, 0)
        if count == 0 or not bool((alive > 0).any()):
            return
        sampled = torch.multinomial(alive.cpu(), count, replacement=True, generator=generator).to(opacity.device)
        sources, inverse, n_copies = sampled.unique(return_inverse=True, return_counts=True)
        scales = parameters.raw["log_scales"][sources].exp()
        new_opacity, new_scale = split_evenly(opacity[sources], scales, n_copies + 1)
        changed = {"logit_opacities": logit(new_opacity.clamp(_DEAD_OPACITY, 1 - 1e-4)), "log_scales": new_scale.log()}
        parameters.overwrite(sources, changed)
        copies = {name: tensor.detach()[sources][inverse] for name, tensor in parameters.raw.items()}
        parameters.overwrite(dead, {name: tensor[: len(dead)] for name, tensor in copies.items()})
        if count > len(dead):
            parameters.append({name: tensor[len(dead) :] for name, tensor in copies.items()})

    def _add_noise(self, parameters: GaussianParameters, generator: torch.Generator, fade: float) -> None:
        opacity = parameters.raw["logit_opacities"].sigmoid()
        transparent = torch.sigmoid(-100 * (opacity - _DEAD_OPACITY))
        size = parameters.raw["log_scales"].exp().mean(1)
        noise = torch.randn(parameters.raw["means"].shape, generator=generator).to(opacity.device)
        parameters.raw["means"].add_(noise * (self.noise * fade * transparent * size)[:, None])


class AdaptiveDensity:
    """Density control of Kerbl et al. (2023), section 5: clone, split, prune, and reset opacities.

    The gradient on the screen follows from the gradient of the center in the camera frame: a shift dx moves the
    projection by f dx / z. The dependence of the projected shape on the center is neglected.

    Args:
        extent: scene extent: 1.1 times the largest distance of a camera from the cameras' mean.
        start: first step of densification.
        stop: last step of densification and resets.
        every: steps between densifications.
        reset_every: steps between opacity resets.
        threshold: mean gradient on the screen, in normalized device coordinates, above which a Gaussian is cloned or
            split.
        prune_opacity: opacity below which Gaussians are removed.
        cap: largest number of Gaussians; densification stops at this number.
    """

    def __init__(
        self,
        extent: float,
        start: int = 500,
        stop: int = 15_000,
        every: int = 100,
        reset_every: int = 3000,
        threshold: float = 2e-4,
        prune_opacity: float = 0.005,
        cap: int = 1_000_000,
    ) -> None:
        self.extent, self.start, self.stop, self.every = extent, start, stop, every
        self.reset_every, self.threshold, self.prune_opacity, self.cap = reset_every, threshold, prune_opacity, cap
        self._sum = torch.zeros(0)
        self._count = torch.zeros(0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums of gradients since the last densification."""
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of ``state_dict``."""
        self._sum, self._count = state["sum"], state["count"]

    @torch.no_grad()
    def before_step(self, parameters: GaussianParameters, camera: Camera, step: int) -> None:
        """Add the gradients on the screen of one step."""
        if step > self.stop:
            return
        if len(self._sum) != len(parameters):
            self._sum = torch.zeros(len(parameters), device=parameters.device)
            self._count = torch.zeros_like(self._sum)
        gradient = parameters.raw["means"].grad
        if gradient is None:
            return
        viewmat = camera.viewmat.to(gradient)
        in_camera = gradient @ viewmat[:3, :3].T
        depth = parameters.raw["means"].detach() @ viewmat[2, :3] + viewmat[2, 3]
        focal = camera.K.to(gradient)[[0, 1], [0, 1]]
        half_size = gradient.new_tensor([camera.width, camera.height]) / 2
        on_screen = (in_camera[:, :2] * depth[:, None] / focal * half_size).norm(dim=-1)
        rendered = gradient.abs().sum(-1) > 0
        self._sum += on_screen.where(rendered, 0)
        self._count += rendered

    @torch.no_grad()
    def after_step(self, parameters: GaussianParameters, step: int, generator: torch.Generator) -> None:
        """Densify, prune and reset opacities at their steps."""
        if step > self.stop:
            return
        if step > self.start and step % self.every == 0:
            self._densify(parameters, generator)
            self._prune(parameters, prune_large=step > self.reset_every)
        if step % self.reset_every == 0 or step == self.start:
            ceiling = logit(torch.tensor(0.01, device=parameters.device))
            low = parameters.raw["logit_opacities"].detach().minimum(ceiling)
            all_indices = torch.arange(len(parameters), device=parameters.device)
            parameters.overwrite(all_indices, {"logit_opacities": low})

    def _densify(self, parameters: GaussianParameters, generator: torch.Generator) -> None:
        """Clone small Gaussians and split large ones, where the mean gradient on the screen is large."""
        if len(self._sum) != len(parameters):
            return
        mean_gradient = self._sum / self._count.clamp_min(1)
        selected = mean_gradient > self.threshold
        capacity = self.cap - len(parameters)
        if int(selected.sum()) > capacity:
            selected &= mean_gradient >= mean_gradient.topk(max(1, capacity)).values[-1]
        if capacity <= 0 or not bool(selected.any()):
            self._sum = torch.zeros(0)
            return
        large = parameters.raw["log_scales"].exp().amax(1) > 0.01 * self.extent
        cloned = {name: tensor.detach()[selected & ~large] for name, tensor in parameters.raw.items()}
        split = {name: tensor.detach()[selected & large].repeat(2, *[1] * (tensor.ndim - 1))
                 for name, tensor in parameters.raw.items()}  # fmt: skip
        noise = torch.randn(split["means"].shape, generator=generator).to(parameters.device)
        split["means"] = split["means"] + _rotate(split["quats"], noise * split["log_scales"].exp())
        split["log_scales"] = split["log_scales"] - math.log(1.6)
        parameters.keep(~(selected & large))
        parameters.append(cloned)
        parameters.append(split)
        self._sum = torch.zeros(0)

    def _prune(self, parameters: GaussianParameters, *, prune_large: bool) -> None:
        keep = parameters.raw["logit_opacities"].sigmoid() >= self.prune_opacity
        if prune_large:
            keep &= parameters.raw["log_scales"].exp().amax(1) <= 0.1 * self.extent
        if bool(keep.any()) and not bool(keep.all()):
            parameters.keep(keep)
            self._sum = torch.zeros(0)


def _rotate(quats: Float[Tensor, "n 4"], vectors: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Rotate vectors by quaternions wxyz of any length."""
    unit = torch.nn.functional.normalize(quats, dim=-1)
    scalar, axis = unit[:, :1], unit[:, 1:]
    twice = 2 * torch.linalg.cross(axis, vectors)
    return vectors + scalar * twice + torch.linalg.cross(axis, twice)
