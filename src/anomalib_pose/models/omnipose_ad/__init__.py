# SPDX-License-Identifier: Apache-2.0
"""OmniposeAD (Zhou et al., PAD, NeurIPS 2023)."""

from anomalib_pose.models.omnipose_ad.lightning_model import OmniposeAD

__all__ = ["OmniposeAD"]
