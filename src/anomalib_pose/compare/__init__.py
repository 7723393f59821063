# SPDX-License-Identifier: Apache-2.0
"""Query and defect-free reference in, anomaly map and image score out."""

from anomalib_pose.compare.calibrated import CalibratedComparator
from anomalib_pose.compare.factory import make_comparator
from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.lighting.shading import relit, unlit
from anomalib_pose.compare.paper import PaperComparator
from anomalib_pose.compare.protocol import Comparator
from anomalib_pose.compare.surface_statistics import SurfaceResiduals
from anomalib_pose.compare.view_support import discounted

__all__ = [
    "CalibratedComparator",
    "Comparator",
    "FeatureExtractor",
    "PaperComparator",
    "SurfaceResiduals",
    "discounted",
    "make_comparator",
    "relit",
    "unlit",
]
