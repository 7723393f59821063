# SPDX-License-Identifier: Apache-2.0
"""The choice between refiners, and what goes with each."""

from anomalib_pose.pose.adam import AdamRefiner, InerfRefiner, ReflectanceRefiner
from anomalib_pose.pose.estimator import PoseEstimator
from anomalib_pose.pose.feature_matchers import make_matcher
from anomalib_pose.pose.gauss_newton import GaussNewtonRefiner
from anomalib_pose.pose.matching import MatchedPose
from anomalib_pose.pose.types import Refiner
from anomalib_pose.render.reflectance import Decomposition, reflectance

_FINISHED_FROM = 2  # divisor of the size: an estimate is within a few pixels of what it is corrected to
_ADAMS: dict[str, type[AdamRefiner | InerfRefiner]] = {"adam": AdamRefiner, "inerf": InerfRefiner}


def make_refiner(
    name: str,
    steps: int = 175,
    seed: int = 0,
    *,
    refine_focal: bool = False,
    decompose: Decomposition = reflectance,
) -> Refiner:
    """Refiner of a name.

    Args:
        name: ``"gauss_newton"``, ``"adam"`` (SplatPose's), ``"inerf"`` (OmniposeAD's) or ``"reflectance"`` (PIAD's).
        steps: of all but ``"gauss_newton"``.
        seed: of all but ``"gauss_newton"``.
        refine_focal: find the focal length too; of ``"gauss_newton"`` alone.
        decompose: how images are taken to what they reflect; of ``"reflectance"`` alone.

    Raises:
        ValueError: if the name is unknown, or the refiner cannot find the focal length.
    """
    if name == "gauss_newton":
        return GaussNewtonRefiner(refine_focal=refine_focal)
    if refine_focal:
        msg = f"refine_focal needs the refiner 'gauss_newton', got {name!r}."
        raise ValueError(msg)
    if name == "reflectance":
        return ReflectanceRefiner(steps=steps, seed=seed, decompose=decompose)
    if name in _ADAMS:
        return _ADAMS[name](steps=steps, seed=seed)
    names = ("gauss_newton", *_ADAMS, "reflectance")
    msg = f"refiner should be one of {', '.join(map(repr, names))}, got {name!r}."
    raise ValueError(msg)


def make_estimator(
    refiner: str = "gauss_newton",
    steps: int = 175,
    starts: int = 3,
    seed: int = 0,
    matcher: str = "",
    matcher_weights: str = "",
    *,
    refine_focal: bool = False,
    decompose: Decomposition = reflectance,
) -> PoseEstimator:
    """Pose search with the refiner of a name.

    Doubtful ends of ``"gauss_newton"`` are polished by a variant that ignores what does not fit; the papers' refiners
    are left as published.

    Args:
        refiner: see ``make_refiner``.
        steps: see ``make_refiner``.
        starts: views of the bank to start from.
        seed: see ``make_refiner``; of RANSAC too.
        matcher: see ``make_matcher``.
        matcher_weights: see ``make_matcher``.
        refine_focal: see ``make_refiner``.
        decompose: see ``make_refiner``.

    Raises:
        ValueError: if a name is unknown, there is no start, or a matcher without weights.
    """
    polisher = finisher = None
    if refiner == "gauss_newton":
        polisher = GaussNewtonRefiner(iterations=12, redescending=True, refine_focal=refine_focal)
        finisher = GaussNewtonRefiner(iterations=4, coarsest=_FINISHED_FROM, refine_focal=refine_focal)
    found = make_matcher(matcher, matcher_weights)
    matched = None if found is None else MatchedPose(found, seed=seed)
    aligned = make_refiner(refiner, steps, seed, refine_focal=refine_focal, decompose=decompose)
    return PoseEstimator(aligned, starts, polisher=polisher, finisher=finisher, matched=matched)
