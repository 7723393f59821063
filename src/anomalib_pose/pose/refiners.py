# SPDX-License-Identifier: Apache-2.0
"""The choice between refiners."""

from anomalib_pose.pose.adam import AdamRefiner
from anomalib_pose.pose.gauss_newton import GaussNewtonRefiner
from anomalib_pose.pose.types import Refiner


def make_refiner(name: str, adam_steps: int = 175, seed: int = 0) -> Refiner:
    """Refiner of a name.

    Args:
        name: ``"gauss_newton"`` or ``"adam"``.
        adam_steps: steps of ``"adam"``.
        seed: of ``"adam"``.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "gauss_newton":
        return GaussNewtonRefiner()
    if name == "adam":
        return AdamRefiner(steps=adam_steps, seed=seed)
    msg = f"refiner should be 'gauss_newton' or 'adam', got {name!r}."
    raise ValueError(msg)


def make_polisher(name: str) -> Refiner | None:
    """What improves a doubtful end of the refiner of a name, or None: the paper's Adam is left as published.

    Args:
        name: see ``make_refiner``.
    """
    return GaussNewtonRefiner(iterations=12, redescending=True) if name == "gauss_newton" else None
