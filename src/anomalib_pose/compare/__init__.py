# SPDX-License-Identifier: Apache-2.0
"""Comparison of queries with defect-free references: anomaly maps and image scores."""

from anomalib_pose.compare.calibrated import CalibratedComparator
from anomalib_pose.compare.factory import ComparatorName, make_comparator
from anomalib_pose.compare.features import FeatureExtractor, NetworkSettings
from anomalib_pose.compare.lighting.shading import relight_query, relight_reference
from anomalib_pose.compare.paper import PaperComparator
from anomalib_pose.compare.protocol import Comparator
from anomalib_pose.compare.reference_comparison import ReferenceComparison
from anomalib_pose.compare.settings import LayerWeights, ScoringSettings, WindowSettings
from anomalib_pose.compare.surface_statistics import SurfaceStatistics
from anomalib_pose.compare.view_support import attenuate_unsupported

__all__ = [
    "CalibratedComparator",
    "Comparator",
    "ComparatorName",
    "FeatureExtractor",
    "LayerWeights",
    "NetworkSettings",
    "PaperComparator",
    "ReferenceComparison",
    "ScoringSettings",
    "SurfaceStatistics",
    "WindowSettings",
    "attenuate_unsupported",
    "make_comparator",
    "relight_query",
    "relight_reference",
]
