# SPDX-License-Identifier: Apache-2.0
"""Geometry on tensors: rigid motions, cameras, view lattices, point sampling."""

from anomalib_pose.geometry.camera import (
    Camera,
    pose_error,
    projection_jacobian,
    resize_image_mask_K,
    resize_intrinsics,
    scale_focal_lengths,
    viewed_point,
)
from anomalib_pose.geometry.lattice import look_at, mad_lattice, view_sphere
from anomalib_pose.geometry.sampling import farthest_point_sampling
from anomalib_pose.geometry.se3 import rigid_inverse, rotation_angle, se3_exp, se3_log, skew, so3_exp, so3_log

__all__ = [
    "Camera",
    "farthest_point_sampling",
    "look_at",
    "mad_lattice",
    "pose_error",
    "projection_jacobian",
    "resize_image_mask_K",
    "resize_intrinsics",
    "rigid_inverse",
    "rotation_angle",
    "scale_focal_lengths",
    "se3_exp",
    "se3_log",
    "skew",
    "so3_exp",
    "so3_log",
    "view_sphere",
    "viewed_point",
]
