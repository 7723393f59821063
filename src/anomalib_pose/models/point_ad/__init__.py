# SPDX-License-Identifier: Apache-2.0
"""PointAD: zero-shot anomaly detection in point clouds from rendered views (Zhou et al., NeurIPS 2024)."""

from anomalib_pose.models.point_ad.inferencer import CloudPrediction, PointADInferencer
from anomalib_pose.models.point_ad.lightning_model import PointAD

__all__ = ["CloudPrediction", "PointAD", "PointADInferencer"]
