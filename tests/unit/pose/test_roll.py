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


def rolled(pose: torch.Tensor, degrees: float) -> torch.Tensor:
    turned = pose.clone()
    turned[:3, :3] = pose[:3, :3] @ roll_matrix(math.radians(degrees))
    return turned


def render_query(scene, camera: Camera) -> Query:
    output = scene.render(camera, torch.ones(3))
    return Query(output.rgb.permute(2, 0, 1).clamp(0, 1), camera.K, (output.alpha > 0.5).float())


def test_a_right_angle_is_an_exact_turn():
    """A camera that is rolled by +90 degrees has +x where +y was: its image is the upright one, turned against that."""
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
    upright = undo_roll(Query(image, K, image[0]), math.pi / 2)
    torch.testing.assert_close(upright.image, image.rot90(-1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(upright.foreground, image[0].rot90(-1, (0, 1)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("degrees", [-50, 20, 90])
def test_the_image_turns_as_the_camera_does(degrees):
    """What the upright camera renders, from a rolled one with an off-center principal point and oblong pixels."""
    scene = make_toy()
    K = torch.tensor([[150.0, 0, 70], [0, 130, 55], [0, 0, 1]])
    camera = Camera(TRUTH[4], K, 128, 112)
    expected = render_query(scene, camera)
    seen = render_query(scene, camera.with_pose(rolled(TRUTH[4], degrees)))
    found = undo_roll(seen, math.radians(degrees))
    wrong, left = ((one.image - expected.image).abs().mean() for one in (seen, found))
    assert left < 0.15 * wrong


def test_what_is_outside_is_background():
    image = torch.full((3, 20, 40), 0.3)
    K = torch.tensor([[40.0, 0, 20], [0, 40, 10], [0, 0, 1]])
    masked = undo_roll(Query(image, K, torch.ones(20, 40)), math.pi / 2)
    torch.testing.assert_close(masked.image[:, :, 0], torch.ones(3, 20))
    assert not masked.foreground[:, 0].any()
    torch.testing.assert_close(undo_roll(Query(image, K), math.pi / 2).image, image)


def test_a_shrunk_query_keeps_its_rays():
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
def test_rolled_queries_are_found(fitted, degrees, masked):
    scene, bank = fitted
    estimator = PoseEstimator(GaussNewtonRefiner(), starts=3)
    upright_only = ViewBank(12.0)
    upright_only.load_state_dict(bank.state_dict())
    errors = []
    for pose in TRUTH[1:10:4]:
        truth = rolled(pose, degrees)
        query = render_query(scene, Camera.from_fov(truth, 0.7, 96, 64))
        query = query if masked else Query(query.image, query.K)
        estimate = estimator(scene, bank, query)
        assert math.degrees(pose_error(estimate.camera.camera_to_world, truth)[0]) < 1
        assert estimate.confidence > 0.7
        nearest = upright_only.nearest(query, 3)[0]
        errors.append(math.degrees(pose_error(nearest, truth.expand(3, 4, 4))[0].min()))
    assert min(errors) > 20


def test_starts_of_boxes_are_rolled_to_where_the_object_is(fitted):
    """Hand-held cameras: the object's place in the image is used after the image was turned."""
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
        truth = rolled(poses[index], 100)
        query = render_query(scene, Camera(truth, cameras.K[index], 64, 64))
        start = bank.nearest(query, 1)[0]
        pixels = [Camera(pose, query.K, 64, 64).project(scene.center[None])[0] for pose in (start[0], truth)]
        assert (pixels[0] - pixels[1]).norm() < 6
        estimate = estimator(scene, bank, query)
        assert math.degrees(pose_error(estimate.camera.camera_to_world, truth)[0]) < 1


def test_rolls_are_counted_from_one():
    with pytest.raises(ValueError, match="number of turns"):
        ViewBank(rolls=0)
