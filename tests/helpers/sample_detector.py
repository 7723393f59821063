# SPDX-License-Identifier: Apache-2.0
"""A small detector for tests, and photographs for it."""

import torch

from anomalib_pose.compare import CalibratedComparator
from anomalib_pose.deploy import DetectorSettings, FeedForwardDetector, build_detector
from anomalib_pose.geometry import Camera, view_sphere
from sample_scenes import make_toy

SIZE = 96
CAMERA = Camera.from_fov(torch.eye(4), 0.7, SIZE, SIZE)
POSES = view_sphere(60, 3.0, 1.2, -1.2)
QUERIES = view_sphere(7, 3.02, 1.0, -1.0, azimuth_offset=0.3)


def make_detector(**settings: object) -> FeedForwardDetector:
    """A detector of the toy on white; ``settings`` differ from 150 views of 96 pixels."""
    options = DetectorSettings(**{"views": 150, "size": SIZE, **settings})
    return build_detector(make_toy(), POSES, CAMERA, CalibratedComparator(), options, white_background=True)


def photograph(pose: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """The toy on white (3, size, size)."""
    output = make_toy().render(CAMERA.resized(size, size).with_pose(pose), torch.ones(3))
    return output.rgb.permute(2, 0, 1).clamp(0, 1)
