# SPDX-License-Identifier: Apache-2.0
"""Small rendered data sets in the layouts of real ones, written without a download."""

from anomalib_pose.sample_data.clouds import write_clouds
from anomalib_pose.sample_data.mad import write_mad
from anomalib_pose.sample_data.mip import write_mip
from anomalib_pose.sample_data.toys import Toy, build_toy

__all__ = ["Toy", "build_toy", "write_clouds", "write_mad", "write_mip"]
