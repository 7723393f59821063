# SPDX-License-Identifier: Apache-2.0
"""Toy data sets that need no download: bricks and solids, drawn in the layouts of real data sets."""

from anomalib_pose.data.files import opengl_matrix
from anomalib_pose.sample_data.clouds import write_clouds
from anomalib_pose.sample_data.mad import write_mad
from anomalib_pose.sample_data.mip import write_mip
from anomalib_pose.sample_data.toys import Toy, build_toy
from anomalib_pose.sample_data.views import CAMERA_ANGLE_X

__all__ = ["CAMERA_ANGLE_X", "Toy", "build_toy", "opengl_matrix", "write_clouds", "write_mad", "write_mip"]
