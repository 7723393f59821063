# SPDX-License-Identifier: Apache-2.0
"""The choice between refiners."""

from anomalib_pose.pose.adam import AdamRefiner, InerfRefiner
from anomalib_pose.pose.gauss_newton import GaussNewtonRefiner
from anomalib_pose.pose.types import Refiner


def make_refiner(name: str, steps: int = 175, seed: int = 0) -> Refiner:
    """Refiner of a name.

    Args:
        name: ``"gauss_newton"``, ``"adam"`` (SplatPose's) or ``"inerf"`` (OmniposeAD's).
        steps: of ``"adam"`` and ``"inerf"``.
        seed: of ``"adam"`` and ``"inerf"``.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "gauss_newton":
        return GaussNewtonRefiner()
    if name == "adam":
        return AdamRefiner(steps=steps, seed=seed)
    if name == "inerf":
        return InerfRefiner(steps=steps, seed=seed)
    msg = f"refiner should be 'gauss_newton', 'adam' or 'inerf', got {name!r}."
    raise ValueError(msg)


def make_polisher(name: str) -> Refiner | None:
    """What improves a doubtful end of the refiner of a name, or None: the papers' are left as published.

    Args:
        name: see ``make_refiner``.
    """
    return GaussNewtonRefiner(iterations=12, redescending=True) if name == "gauss_newton" else None
