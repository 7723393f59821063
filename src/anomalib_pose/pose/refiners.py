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

# Divisor of the image size at the first level of the relighting refiner. Its initial pose is a few pixels off at most.
_RELIGHTING_COARSEST = 2

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
        steps: optimizer steps per initial pose; ``"gauss_newton"`` ignores them.
        seed: seed of the random numbers; ``"gauss_newton"`` uses none.
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
    """Build a pose estimator with the refiner of a name.

    ``"gauss_newton"`` comes with a robust refiner, which ignores pixels with large residuals, and with a relighting
    refiner. The papers' refiners come without these two, as published.

    Args:
        refiner: see ``make_refiner``.
        steps: see ``make_refiner``.
        starts: number of initial poses from the view bank.
        seed: see ``make_refiner``; RANSAC uses it too.
        matcher: see ``make_matcher``.
        matcher_weights: see ``make_matcher``.
        refine_focal: see ``make_refiner``.
        decompose: see ``make_refiner``.

    Raises:
        ValueError: if a name is unknown, ``starts`` is below 1, or a matcher has no weights.
    """
    robust_refiner = relighting_refiner = None
    if refiner == "gauss_newton":
        robust_refiner = GaussNewtonRefiner(iterations=12, redescending=True, refine_focal=refine_focal)
        relighting_refiner = GaussNewtonRefiner(iterations=4, coarsest=_RELIGHTING_COARSEST, refine_focal=refine_focal)
    feature_matcher = make_matcher(matcher, matcher_weights)
    return PoseEstimator(
        make_refiner(refiner, steps, seed, refine_focal=refine_focal, decompose=decompose),
        starts,
        robust_refiner=robust_refiner,
        relighting_refiner=relighting_refiner,
        feature_localizer=None if feature_matcher is None else FeatureLocalizer(feature_matcher, seed=seed),
    )
