# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from anomalib_pose.geometry import Camera, look_at, pose_error, view_sphere
from anomalib_pose.pose import GaussNewtonRefiner, PoseEstimator, Query, ViewBank
from anomalib_pose.pose.roll import downscale_query, roll_matrix, undo_roll
from sample_scenes import make_toy

TRAINING = Camera.from_fov(view_sphere(40, 3.0, 1.2, -1.2), 0.7, 64, 64)
TRUTH = view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)
UP = torch.tensor([0.0, 0, 1])


def roll_pose(pose: torch.Tensor, degrees: float) -> torch.Tensor:
    rolled_pose = pose.clone()
    rolled_pose[:3, :3] = pose[:3, :3] @ roll_matrix(math.radians(degrees))
    return rolled_pose


def render_query(scene, camera: Camera) -> Query:
    output = scene.render(camera, torch.ones(3))
    return Query(output.rgb.permute(2, 0, 1).clamp(0, 1), camera.K, (output.alpha > 0.5).float())


def test_undoing_a_right_angle_equals_rot90():
    """A camera rolled by +90 degrees has +x where +y was. Its image is the upright image, rotated the other way."""
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
    upright = undo_roll(Query(image, K, image[0]), math.pi / 2)
    torch.testing.assert_close(upright.image, image.rot90(-1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(upright.foreground, image[0].rot90(-1, (0, 1)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("degrees", [-50, 20, 90])
def test_undo_roll_gives_the_image_of_the_upright_camera(degrees):
    """The rolled camera has an off-center principal point and oblong pixels."""
    scene = make_toy()
    K = torch.tensor([[150.0, 0, 70], [0, 130, 55], [0, 0, 1]])
    camera = Camera(TRUTH[4], K, 128, 112)
    expected = render_query(scene, camera)
    query = render_query(scene, camera.with_pose(roll_pose(TRUTH[4], degrees)))
    upright_query = undo_roll(query, math.radians(degrees))
    before, after = ((image - expected.image).abs().mean() for image in (query.image, upright_query.image))
    assert after < 0.15 * before


def test_pixels_from_outside_the_image_are_background():
    image = torch.full((3, 20, 40), 0.3)
    K = torch.tensor([[40.0, 0, 20], [0, 40, 10], [0, 0, 1]])
    masked = undo_roll(Query(image, K, torch.ones(20, 40)), math.pi / 2)
    torch.testing.assert_close(masked.image[:, :, 0], torch.ones(3, 20))
    assert not masked.foreground[:, 0].any()
    torch.testing.assert_close(undo_roll(Query(image, K), math.pi / 2).image, image)


def test_a_downscaled_query_keeps_its_rays():
    query = Query(torch.rand(3, 60, 200), TRAINING.K[0])
    small = downscale_query(query, 100)
    assert small.image.shape == (3, 30, 100)
    torch.testing.assert_close(small.K[:2], query.K[:2] / 2)
    assert torch.equal(downscale_query(query, 300).image, query.image)


@pytest.fixture(scope="module")
def fitted():
    scene, bank = make_toy(), ViewBank(12.0, rolls=12)
    bank.build(scene, TRAINING)
    return scene, bank


@pytest.mark.parametrize("degrees", [35, 90])
@pytest.mark.parametrize("masked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_estimator_recovers_rolled_poses(fitted, degrees, masked):
    scene, bank = fitted
    estimator = PoseEstimator(GaussNewtonRefiner(), starts=3)
    upright_only = ViewBank(12.0)
    upright_only.load_state_dict(bank.state_dict())
    errors = []
    for pose in TRUTH[1:10:4]:
        truth = roll_pose(pose, degrees)
        query = render_query(scene, Camera.from_fov(truth, 0.7, 96, 64))
        query = query if masked else Query(query.image, query.K)
        estimate = estimator(scene, bank, query)
        assert math.degrees(pose_error(estimate.camera.camera_to_world, truth)[0]) < 1
        assert estimate.confidence > 0.7
        nearest = upright_only.nearest(query, 3)[0]
        errors.append(math.degrees(pose_error(nearest, truth.expand(3, 4, 4))[0].min()))
    assert min(errors) > 20


def test_initial_poses_with_boxes_match_the_place_of_a_rolled_object(fitted):
    """Cameras are hand-held. The bank measures the object's place in the upright query."""
    scene, _ = fitted
    generator = torch.Generator().manual_seed(1)
    eyes = view_sphere(60, 1.0, 1.0, -0.5)[:, :3, 3] * (2.5 + torch.rand(60, 1, generator=generator))
    poses = torch.stack([look_at(eye, 0.3 * torch.randn(3, generator=generator), UP) for eye in eyes])
    cameras = Camera.from_fov(poses, 0.9, 64, 64)
    bank = ViewBank(12.0, rolls=12)
    bank.build(scene, cameras[:50])
    assert bool(bank.by_box)
    estimator = PoseEstimator(GaussNewtonRefiner(), starts=4)
    for index in (51, 54, 57):
        truth = roll_pose(poses[index], 100)
        query = render_query(scene, Camera(truth, cameras.K[index], 64, 64))
        initial_poses = bank.nearest(query, 1)[0]
        pixels = [Camera(pose, query.K, 64, 64).project(scene.center[None])[0] for pose in (initial_poses[0], truth)]
        assert (pixels[0] - pixels[1]).norm() < 6
        estimate = estimator(scene, bank, query)
        assert math.degrees(pose_error(estimate.camera.camera_to_world, truth)[0]) < 1


def test_fewer_than_one_roll_is_refused():
    with pytest.raises(ValueError, match="number of in-plane rotations"):
        ViewBank(rolls=0)
