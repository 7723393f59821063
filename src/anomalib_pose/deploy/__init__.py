# SPDX-License-Identifier: Apache-2.0
"""Detectors of one object that need neither renderer nor optimizer, and their export."""

from anomalib_pose.deploy.build import build_detector, drawn_scene
from anomalib_pose.deploy.detector import FeedForwardDetector
from anomalib_pose.deploy.openvino.export import ExportedDetector
from anomalib_pose.deploy.settings import DetectorSettings

__all__ = ["DetectorSettings", "ExportedDetector", "FeedForwardDetector", "build_detector", "drawn_scene"]
