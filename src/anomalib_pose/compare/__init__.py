# SPDX-License-Identifier: Apache-2.0
"""Query and defect-free reference in, anomaly map and image score out."""

from anomalib_pose.compare.calibrated import CalibratedComparator
from anomalib_pose.compare.doubt import discounted
from anomalib_pose.compare.factory import make_comparator
from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.paper import PaperComparator
from anomalib_pose.compare.protocol import Comparator
from anomalib_pose.compare.shading import relit, unlit
from anomalib_pose.compare.surface import SurfaceResiduals

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
