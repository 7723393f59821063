# SPDX-License-Identifier: Apache-2.0
"""PIAD (CVPR 2025)."""

from anomalib_pose.models.piad.lightning_model import PIAD

__all__ = ["PIAD"]
