# SPDX-License-Identifier: Apache-2.0
"""The choice between refiners."""

from anomalib_pose.pose.adam import AdamRefiner, InerfRefiner, ReflectanceRefiner
from anomalib_pose.pose.gauss_newton import GaussNewtonRefiner
from anomalib_pose.pose.types import Refiner

_ADAMS: dict[str, type[AdamRefiner | InerfRefiner | ReflectanceRefiner]] = {
    "adam": AdamRefiner,
    "inerf": InerfRefiner,
    "reflectance": ReflectanceRefiner,
}


def make_refiner(name: str, steps: int = 175, seed: int = 0) -> Refiner:
    """Refiner of a name.

    Args:
        name: ``"gauss_newton"``, ``"adam"`` (SplatPose's), ``"inerf"`` (OmniposeAD's) or ``"reflectance"`` (PIAD's).
        steps: of all but ``"gauss_newton"``.
        seed: of all but ``"gauss_newton"``.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "gauss_newton":
        return GaussNewtonRefiner()
    if name in _ADAMS:
        return _ADAMS[name](steps=steps, seed=seed)
    msg = f"refiner should be one of 'gauss_newton', {', '.join(map(repr, _ADAMS))}, got {name!r}."
    raise ValueError(msg)


def make_polisher(name: str) -> Refiner | None:
    """What improves a doubtful end of the refiner of a name, or None: the papers' are left as published.

    Args:
        name: see ``make_refiner``.
    """
    return GaussNewtonRefiner(iterations=12, redescending=True) if name == "gauss_newton" else None
