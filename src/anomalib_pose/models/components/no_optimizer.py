# SPDX-License-Identifier: Apache-2.0
"""The optimizer of a model without parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class NoOptimizer(Optimizer):
    """Optimizer that changes nothing.

    Lightning's loop runs with it as it would without an optimizer, but does not warn that there is none.
    """

    def __init__(self) -> None:
        super().__init__([torch.zeros(1)], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the training step.

        Args:
            closure: the training step, or None.
        """
        return None if closure is None else closure()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, so that checkpoints stay small."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state of a checkpoint.

        Args:
            state_dict: state of any optimizer.
        """
