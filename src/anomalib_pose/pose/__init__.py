# SPDX-License-Identifier: Apache-2.0
"""Camera pose estimation of a query image: view bank, feature matching, refinement, confidence."""

from anomalib_pose.pose.adam import AdamRefiner
from anomalib_pose.pose.estimator import PoseEstimator
from anomalib_pose.pose.feature_matchers import MatcherName, make_matcher
from anomalib_pose.pose.gauss_newton import GaussNewtonRefiner
from anomalib_pose.pose.matching import FeatureLocalizer, Matcher
from anomalib_pose.pose.refiners import RefinerName, make_estimator, make_refiner
from anomalib_pose.pose.types import PoseEstimate, Query, RefinementResult, Refiner
from anomalib_pose.pose.view_bank import ViewBank, bank_poses

__all__ = [
    "AdamRefiner",
    "FeatureLocalizer",
    "GaussNewtonRefiner",
    "Matcher",
    "MatcherName",
    "PoseEstimate",
    "PoseEstimator",
    "Query",
    "RefinementResult",
    "Refiner",
    "RefinerName",
    "ViewBank",
    "bank_poses",
    "make_estimator",
    "make_matcher",
    "make_refiner",
]
