# SPDX-License-Identifier: Apache-2.0
"""Looking3D: anomaly detection by 2D-3D alignment with reference views (Bhunia et al., CVPR 2024)."""

from anomalib_pose.models.looking3d.lightning_model import Looking3D

__all__ = ["Looking3D"]
