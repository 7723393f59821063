# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from anomalib_pose.deploy import FeedForwardDetector
from anomalib_pose.deploy.graph.alignment import DepthViews
from anomalib_pose.deploy.graph.view_synthesis import synthesize_views
from anomalib_pose.geometry import rigid_inverse
from sample_detector import CAMERA, QUERIES, make_detector
from sample_scenes import make_toy


@pytest.fixture(scope="module")
def detector() -> FeedForwardDetector:
    return make_detector(drawn=False)


def test_pixels_beyond_the_frames_of_all_views_have_no_support():
    plane = DepthViews(torch.full((1, 3, 20, 30), 0.4), torch.ones(1, 20, 30), torch.ones(1, 20, 30))
    pinhole = torch.tensor([[30.0, 30, 15, 10]])
    motion = torch.eye(4)[None].clone()
    motion[:, 0, 3] = 4 / 30  # moves the plane's image four pixels to the right; no view shows what is on the left
    rendering = synthesize_views(plane, motion, rigid_inverse(motion), pinhole, 1)
    torch.testing.assert_close(rendering.support[0, 3:-3, :3], torch.zeros(14, 3))
    torch.testing.assert_close(rendering.support[0, 3:-3, 6:], torch.ones(14, 24))
    torch.testing.assert_close(rendering.rgb[0, :, 3:-3, 6:-3], torch.full((3, 14, 21), 0.4))


def test_synthesized_views_agree_with_renderings(detector):
    bank = detector.bank
    poses = QUERIES.clone()
    poses[:, :3, 3] /= bank.unit
    near = bank.nearest_cameras(poses, 3)
    inverse_motion = rigid_inverse(bank.pose(near.flatten())) @ poses.repeat_interleave(3, 0)
    pinhole = bank.pinhole(near.flatten())
    actual = synthesize_views(bank.view(near.flatten()), rigid_inverse(inverse_motion), inverse_motion, pinhole, 3)
    output = make_toy().render(CAMERA.with_pose(QUERIES), torch.ones(3))
    expected, alpha = detector.crop(output.rgb.permute(0, 3, 1, 2)), crop_plane(detector, output.alpha)
    depth = crop_plane(detector, output.alpha * output.depth) / alpha.clamp(min=1e-6)
    difference = (actual.rgb - expected).abs().amax(1)
    supported = actual.support > 0.5
    assert supported.float().mean() > 0.98
    assert (difference[supported] > 0.2).float().mean() < 0.01
    assert difference[supported & (alpha > 0.9)].mean() < 0.03
    assert (actual.alpha - alpha).abs().mean() < 0.02
    assert (bank.unit * actual.depth - depth)[alpha > 0.9].abs().median() < 0.03


def crop_plane(detector, plane: torch.Tensor) -> torch.Tensor:
    return detector.crop(plane[:, None].expand(-1, 3, -1, -1))[:, 0]
