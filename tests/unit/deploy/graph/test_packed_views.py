# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from anomalib_pose.compare import CalibratedComparator
from anomalib_pose.compare.maps import largest_around
from anomalib_pose.deploy import DetectorSettings, build_detector
from anomalib_pose.deploy.graph.packed_views import pack_view
from sample_detector import CAMERA, POSES, QUERIES, SIZE, photograph
from sample_scenes import make_toy


@pytest.mark.parametrize("pixels", [SIZE, 3 * SIZE])
def test_views_are_cropped_from_photographs_and_survive_the_packing(pixels):
    """Rendered at the window's size, Gaussians would be blurred by more of the object, which would look larger."""
    camera, settings = CAMERA.resized(pixels, pixels), DetectorSettings(views=12, size=SIZE, drawn=False)
    detector = build_detector(make_toy(), POSES, camera, CalibratedComparator(), settings, white_background=True)
    bank = detector.bank
    index = torch.tensor([3, 7])
    pose = bank.pose(index)
    pose[:, :3, 3] *= bank.unit
    output = make_toy().render(camera.with_pose(pose), torch.ones(3))
    rgb = detector.crop(output.rgb.permute(0, 3, 1, 2).clamp(0, 1))
    alpha, weighted = (
        detector.crop(part[:, None].expand(-1, 3, -1, -1))[:, 0] for part in (output.alpha, output.alpha * output.depth)
    )
    depth = weighted / alpha.clamp(min=1e-6)
    view = bank.view(index)
    torch.testing.assert_close(view.rgb, rgb, atol=5e-3, rtol=0)
    opaque = alpha > 0.5
    decided = (alpha - 0.5).abs() > 1e-4  # closer to one half, the last digit of the processor decides
    assert decided.float().mean() > 0.999
    assert torch.equal((view.alpha > 0)[decided], opaque[decided])
    deepest = largest_around(torch.where(opaque, depth, 0), 3)
    smooth = opaque & (deepest + largest_around(torch.where(opaque, -depth, -9), 3) < 0.02 * depth)
    assert smooth.float().sum() > 0.5 * opaque.sum()
    assert ((view.depth * bank.unit - depth)[smooth].abs() < 0.02).float().mean() > 0.99


def test_a_pixel_of_half_opacity_is_packed_alike_on_all_processors():
    alpha = torch.full((8, 8), 0.5) + torch.linspace(-3e-6, 3e-6, 64).view(8, 8)
    alpha[0], alpha[7] = 0.5 - 1e-4, 0.5 + 1e-4
    packed, _ = pack_view(torch.rand(8, 8, 3), torch.ones(8, 8), alpha)
    silhouette = packed[3] % 2
    assert not silhouette[:7].any()
    assert silhouette[7].all()


def test_a_flipped_pixel_of_a_silhouette_hardly_changes_a_score():
    settings = DetectorSettings(views=12, size=SIZE, drawn=False)
    detector = build_detector(make_toy(), POSES, CAMERA, CalibratedComparator(), settings, white_background=False)
    image = photograph(QUERIES[0])[None]
    image[:, :, 44:52, 44:52] = torch.tensor([0.1, 0.9, 0.1])[:, None, None]
    expected = detector(image)
    silhouettes = detector.bank.views[:, 3] % 2
    edges = (largest_around(silhouettes.float(), 3) > 0) & (silhouettes == 0)
    for index in range(len(edges)):
        row, column = edges[index].nonzero()[index]
        detector.bank.views[index, 3, row, column] ^= 1
    changed = detector(image)
    torch.testing.assert_close(changed.pred_score, expected.pred_score, rtol=2e-3, atol=0)
    assert (changed.anomaly_map - expected.anomaly_map).abs().mean() < 0.02 * expected.anomaly_map.mean()


def test_no_point_of_a_packed_view_lies_between_two_surfaces():
    depth = 2 + 0.01 * torch.arange(12.0).expand(8, 12)  # a plane at a grazing angle
    depth[:, 6:] += 1
    depth[:, 6] = 2.7  # expected depth where both surfaces are visible
    alpha = torch.ones(8, 12)
    alpha[:, 11] = 0
    packed, limits = pack_view(torch.rand(8, 12, 3), depth, alpha)
    unpacked = limits[0] + torch.floor(packed[3].float() / 2) / 127 * (limits[1] - limits[0])
    expected = depth.clone()
    expected[:, 6] = 3.07
    torch.testing.assert_close(unpacked[:, :11], expected[:, :11], atol=0.02, rtol=0)
