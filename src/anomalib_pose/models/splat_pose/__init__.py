# SPDX-License-Identifier: Apache-2.0
"""SplatPose (Kruse et al., CVPR-W 2024)."""

from anomalib_pose.models.splat_pose.lightning_model import SplatPose

__all__ = ["SplatPose"]
