# SPDX-License-Identifier: Apache-2.0
"""Feed-forward detectors of one object, without a renderer or an optimizer at run time, and their export."""

from anomalib_pose.deploy.build import build_detector, rasterized_scene
from anomalib_pose.deploy.detector import FeedForwardDetector
from anomalib_pose.deploy.openvino.export import ExportedDetector
from anomalib_pose.deploy.settings import DetectorSettings

__all__ = ["DetectorSettings", "ExportedDetector", "FeedForwardDetector", "build_detector", "rasterized_scene"]
