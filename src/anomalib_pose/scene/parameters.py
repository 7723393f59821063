# SPDX-License-Identifier: Apache-2.0
"""Trainable Gaussians with their optimizer; the number of Gaussians may change between steps."""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from anomalib_pose.render import Gaussians
from anomalib_pose.scene.gaussian_scene import RAW_NAMES, activate

_ADAM_EPSILON = 1e-15
_HIGHER_SH_RATE = 1 / 20  # Kerbl et al.'s rate of view-dependent coefficients, relative to the constant coefficient's


class GaussianParameters:
    """Raw Gaussians (see ``GaussianScene``) as leaf tensors, with one Adam parameter group per tensor.

    Args:
        raw: raw tensors by the name of ``GaussianScene``'s buffers.
        learning_rates: by the same names.
        sh_degree: spherical harmonics degree of the colors.
    """

    def __init__(self, raw: dict[str, Tensor], learning_rates: dict[str, float], sh_degree: int) -> None:
        self.learning_rates = learning_rates
        self.sh_degree = sh_degree
        self.raw = {name: raw[name].detach().clone().requires_grad_() for name in RAW_NAMES}
        groups = [{"params": [self.raw[name]], "lr": learning_rates[name], "name": name} for name in RAW_NAMES]
        self.optimizer = torch.optim.Adam(groups, eps=_ADAM_EPSILON, fused=True)

    def __len__(self) -> int:
        """Number of Gaussians."""
        return len(self.raw["means"])

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.raw["means"].device

    def activated(self) -> Gaussians:
        """Return the Gaussians for a rasterizer."""
        return activate(self.raw, self.sh_degree)

    def step(self, decay: dict[str, float]) -> None:
        """Take one step of Adam with learning rates times ``decay``, and clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rates[group["name"]] * decay[group["name"]]
        higher = self.raw["sh"].detach()[:, 1:]
        before = higher.clone()
        self.optimizer.step()
        # Adam's step is proportional to its rate, so undoing a fraction of the step equals a lower rate.
        higher.lerp_(before, 1 - _HIGHER_SH_RATE)
        self.optimizer.zero_grad(set_to_none=True)

    def keep(self, mask: Bool[Tensor, " n"]) -> None:
        """Keep the Gaussians in a mask and drop the rest."""
        self._rebuild(lambda _, tensor: tensor[mask], lambda tensor: tensor[mask])

    def append(self, added: dict[str, Tensor]) -> None:
        """Add Gaussians with zero moments."""
        count = len(added["means"])
        self._rebuild(
            lambda name, tensor: torch.cat([tensor, added[name]]),
            lambda tensor: torch.cat([tensor, tensor.new_zeros(count, *tensor.shape[1:])]),
        )

    @torch.no_grad()
    def overwrite(self, indices: Int[Tensor, " k"], values: dict[str, Tensor]) -> None:
        """Replace Gaussians in place and reset their moments to zero.

        Args:
            indices: indices of K Gaussians.
            values: new raw tensors by name; absent names keep their values.
        """
        for name, value in values.items():
            self.raw[name][indices] = value
        for name in RAW_NAMES:
            state = self.optimizer.state.get(self.raw[name])
            if state:
                state["exp_avg"][indices] = 0
                state["exp_avg_sq"][indices] = 0

    @torch.no_grad()
    def _rebuild(self, on_values: Any, on_moments: Any) -> None:
        for group in self.optimizer.param_groups:
            name = group["name"]
            old = self.raw[name]
            new = on_values(name, old.detach()).contiguous().requires_grad_()
            state = self.optimizer.state.pop(old, None)
            if state:
                self.optimizer.state[new] = {
                    "step": state["step"],
                    "exp_avg": on_moments(state["exp_avg"]).contiguous(),
                    "exp_avg_sq": on_moments(state["exp_avg_sq"]).contiguous(),
                }
            group["params"] = [new]
            self.raw[name] = new

    def state_dict(self) -> dict[str, Any]:
        """Return the raw tensors and Adam's state."""
        return {
            "raw": {name: tensor.detach() for name, tensor in self.raw.items()},
            "adam": self.optimizer.state_dict()["state"],
        }

    @classmethod
    def from_state(
        cls, state: dict[str, Any], learning_rates: dict[str, float], sh_degree: int, device: torch.device
    ) -> "GaussianParameters":
        """Restore the parameters from ``state_dict``."""
        raw = {name: tensor.to(device) for name, tensor in state["raw"].items()}
        parameters = cls(raw, learning_rates, sh_degree)
        optimizer_state = parameters.optimizer.state_dict()
        # The optimizer would share tensors that are on its device already.
        optimizer_state["state"] = copy.deepcopy(state["adam"])
        parameters.optimizer.load_state_dict(optimizer_state)
        return parameters
