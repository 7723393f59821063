# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from torch.nn import functional

from anomalib_pose.deploy import FeedForwardDetector
from anomalib_pose.deploy.graph.rendered_bank import RenderedBank, spread_poses
from anomalib_pose.pose import Query, ViewBank
from sample_detector import CAMERA, POSES, QUERIES, make_detector, photograph


@pytest.fixture(scope="module")
def detector() -> FeedForwardDetector:
    return make_detector(drawn=False)


def test_initial_views_are_far_apart(detector):
    query = detector.crop(torch.stack([photograph(pose) for pose in QUERIES]))
    index = detector.bank.nearest(query, 4)
    for row in index:
        cosine = detector.bank.directions[row] @ detector.bank.directions[row].T
        assert (torch.rad2deg(cosine.clamp(-1, 1).acos()) + 999 * torch.eye(4)).min() > 12


def test_spread_poses_have_the_requested_number_and_are_even():
    for count in (20, 150):
        poses = spread_poses(POSES, torch.zeros(3), count)
        assert len(poses) == count
        directions = torch.nn.functional.normalize(poses[:, :3, 3], dim=1)
        nearest = (directions @ directions.T - 2 * torch.eye(count)).amax(1).clamp(max=1).acos()
        assert nearest.min() > 0.4 * nearest.median()


def test_a_bank_for_unknown_backgrounds_ignores_the_background(detector):
    bank = detector.bank
    view = bank.view(torch.tensor([10]))
    masked = RenderedBank(
        bank.views, bank.table_rows(torch.arange(len(bank)))[:, :2], bank.pose(torch.arange(len(bank))),
        torch.tensor([[100.0, 0, 48], [0, 100, 48], [0, 0, 1]]), silhouettes_only=True,
    )  # fmt: skip
    clutter = torch.rand(1, 3, *detector.size, generator=torch.Generator().manual_seed(0))
    query = view.rgb * view.alpha[:, None] + clutter * (1 - view.alpha[:, None])
    assert int(masked.similarity(query).argmax()) == 10


def test_initial_views_and_similarities_agree_with_the_twins(detector):
    bank, everything = detector.bank, torch.arange(len(detector.bank))
    twin = ViewBank()
    thumbnails = bank.thumbnail(bank.view(everything).rgb).flatten(1)
    twin.thumbnails = functional.normalize(thumbnails - thumbnails.mean(1, keepdim=True), dim=1)
    twin.poses = bank.pose(everything)
    for pose in QUERIES:
        image = detector.crop(photograph(pose)[None])
        poses, similarity = twin.nearest(Query(bank.thumbnail(image)[0], CAMERA.K), 4)
        index = bank.nearest(image, 4)[0]
        torch.testing.assert_close(bank.pose(index), poses)
        torch.testing.assert_close(bank.similarity(image)[0, index], similarity, atol=1e-4, rtol=0)


def test_thumbnails_are_means_of_equal_parts(detector):
    image = torch.rand(1, 3, *detector.bank_size, generator=torch.Generator().manual_seed(0))
    # 25 times as many pixels, so that no pixel lies in two parts
    enlarged = image.double().repeat_interleave(25, 2).repeat_interleave(25, 3)
    expected = functional.adaptive_avg_pool2d(enlarged, 25).float()
    torch.testing.assert_close(detector.bank.thumbnail(image), expected, atol=1e-5, rtol=0)
