# SPDX-License-Identifier: Apache-2.0
"""Factories of refiners and of pose estimators, by name."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from anomalib_pose.pose.adam import AdamRefiner, InerfRefiner, ReflectanceRefiner
from anomalib_pose.pose.estimator import PoseEstimator
from anomalib_pose.pose.feature_matchers import MatcherName, make_matcher
from anomalib_pose.pose.gauss_newton import GaussNewtonRefiner
from anomalib_pose.pose.matching import FeatureLocalizer
from anomalib_pose.pose.types import Refiner
from anomalib_pose.render.reflectance import Decomposition, reflectance

_FINISHED_FROM = 2  # divisor of the size: an estimate is within a few pixels of what it is corrected to

RefinerName = Literal["gauss_newton", "adam", "inerf", "reflectance"]
"""Names of ``make_refiner``: this package's direct alignment, and the refiners of SplatPose, OmniposeAD and PIAD."""


def make_refiner(
    name: RefinerName | str,
    steps: int = 175,
    seed: int = 0,
    *,
    refine_focal: bool = False,
    decompose: Decomposition = reflectance,
) -> Refiner:
    """Build the refiner of a name.

    Args:
        name: ``"gauss_newton"``, ``"adam"`` (SplatPose's), ``"inerf"`` (OmniposeAD's) or ``"reflectance"`` (PIAD's).
        steps: optimizer steps of each initial pose; ``"gauss_newton"`` ignores them.
        seed: of the random numbers; ``"gauss_newton"`` draws none.
        refine_focal: estimate the focal length too; only ``"gauss_newton"`` can.
        decompose: computes the reflectance of images; only ``"reflectance"`` uses it.

    Raises:
        ValueError: if the name is unknown, or the refiner cannot estimate the focal length.
    """
    refiners: dict[str, Callable[[], Refiner]] = {
        "gauss_newton": partial(GaussNewtonRefiner, refine_focal=refine_focal),
        "adam": partial(AdamRefiner, steps=steps, seed=seed),
        "inerf": partial(InerfRefiner, steps=steps, seed=seed),
        "reflectance": partial(ReflectanceRefiner, steps=steps, seed=seed, decompose=decompose),
    }
    if name not in refiners:
        msg = f"refiner should be one of {', '.join(map(repr, refiners))}, got {name!r}."
        raise ValueError(msg)
    if refine_focal and name != "gauss_newton":
        msg = f"refine_focal needs the refiner 'gauss_newton', got {name!r}."
        raise ValueError(msg)
    return refiners[name]()


def make_estimator(
    refiner: RefinerName | str = "gauss_newton",
    steps: int = 175,
    starts: int = 3,
    seed: int = 0,
    matcher: MatcherName | str = "",
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
    robust_refiner = relighting_refiner = None
    if refiner == "gauss_newton":
        robust_refiner = GaussNewtonRefiner(iterations=12, redescending=True, refine_focal=refine_focal)
        relighting_refiner = GaussNewtonRefiner(iterations=4, coarsest=_FINISHED_FROM, refine_focal=refine_focal)
    found = make_matcher(matcher, matcher_weights)
    matched = None if found is None else FeatureLocalizer(found, seed=seed)
    aligned = make_refiner(refiner, steps, seed, refine_focal=refine_focal, decompose=decompose)
    return PoseEstimator(
        aligned, starts, robust_refiner=robust_refiner, relighting_refiner=relighting_refiner, feature_localizer=matched
    )
