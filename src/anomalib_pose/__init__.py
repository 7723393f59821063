# SPDX-License-Identifier: Apache-2.0
"""Pose-agnostic and 3D anomaly detection for anomalib."""
