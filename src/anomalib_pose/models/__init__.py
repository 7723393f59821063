# SPDX-License-Identifier: Apache-2.0
"""The models, as anomalib registers them."""

from anomalib_pose.models.localization import estimate_pose
from anomalib_pose.models.looking3d import Looking3D
from anomalib_pose.models.omnipose_ad import OmniposeAD
from anomalib_pose.models.piad import PIAD
from anomalib_pose.models.point_ad import PointAD
from anomalib_pose.models.splat_pose import SplatPose

__all__ = ["PIAD", "Looking3D", "OmniposeAD", "PointAD", "SplatPose", "estimate_pose"]
