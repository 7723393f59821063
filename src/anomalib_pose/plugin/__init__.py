# SPDX-License-Identifier: Apache-2.0
"""Registration of models and datamodules with anomalib."""

from anomalib_pose.plugin.registration import register

__all__ = ["register"]
