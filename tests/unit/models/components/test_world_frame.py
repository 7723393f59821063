# SPDX-License-Identifier: Apache-2.0
"""The user's world may have its origin anywhere and any unit."""

import math

import pytest
import torch

from anomalib_pose.geometry import Camera, mad_lattice, pose_error, view_sphere
from anomalib_pose.models import SplatPose
from anomalib_pose.models.components.gaussian_fit import GaussianFit
from anomalib_pose.models.components.world_frame import WorldFrame
from sample_models import save_checkpoint
from sample_scenes import make_toy

OFFSET = torch.tensor([1e6, -2e6, 3e5], dtype=torch.float64)
WORLDS = {"offset": (1.0, OFFSET), "kilometers": (1e-3, 0 * OFFSET), "millimeters and offset": (1e3, OFFSET)}


def moved(poses: torch.Tensor, scale: float, offset: torch.Tensor) -> torch.Tensor:
    """Poses in another world, float64."""
    poses = poses.double().clone()
    poses[:, :3, 3] = poses[:, :3, 3] * scale + offset
    return poses


def cameras(poses: torch.Tensor, size: int = 48) -> Camera:
    camera = Camera.from_fov(torch.eye(4), 0.7, size, size)
    return Camera(poses, camera.K.expand(len(poses), 3, 3), size, size)


@pytest.mark.parametrize("radius", [3.0, 3.5, 4.0])
def test_worlds_like_mads_stay_as_they_are(radius):
    poses, frame = mad_lattice(radius), WorldFrame()
    assert torch.equal(frame.fit(cameras(poses)).camera_to_world, poses)
    assert torch.equal(frame.to_user(poses).float(), poses)
    assert (frame.center.tolist(), float(frame.scale)) == ([0, 0, 0], 1)


@pytest.mark.parametrize("world", WORLDS)
def test_any_world_becomes_a_usual_one_and_poses_return_exactly(world):
    poses, frame = moved(mad_lattice(3.5), *WORLDS[world]), WorldFrame()
    inside = frame.fit(cameras(poses))
    assert inside.camera_to_world.dtype == torch.float32
    assert float(inside.center.norm(dim=-1).median()) == pytest.approx(3.5, abs=1e-4)
    torch.testing.assert_close(frame.to_user(frame.to_detector(poses)), poses, rtol=1e-14, atol=1e-9)
    assert frame.half().center.dtype == torch.float64


def test_positions_that_are_not_finite_are_refused():
    poses = mad_lattice(3.5)
    poses[3, 0, 3] = math.nan
    with pytest.raises(ValueError, match="finite"):
        WorldFrame().fit(cameras(poses))


def fitted(scale: float, offset: torch.Tensor) -> SplatPose:
    """A small model fitted to the toy in another world."""
    model = SplatPose(
        steps=60, max_gaussians=400, sh_degree=0, starts=1, bank_spacing=25.0, holdout_every=6, surface_views=0,
        memory_patches=0, nearby_views=2, rasterizer="cpu",
    )  # fmt: skip
    poses = view_sphere(20, 3.2, 1.2, -1.2)
    output = make_toy().render(cameras(poses), torch.ones(3))
    images = output.rgb.permute(0, 3, 1, 2).clamp(0, 1)
    scene_fit = GaussianFit(model.fit_settings, None, "cpu", progress=False)
    model.model.fit(images, cameras(moved(poses, scale, offset)), None, scene_fit)
    return model.eval()


@pytest.fixture(scope="module")
def usual() -> SplatPose:
    return fitted(1.0, 0 * OFFSET)


@pytest.mark.parametrize("world", WORLDS)
def test_scores_and_pose_errors_are_those_of_the_usual_world(usual, world, tmp_path):
    scale, offset = WORLDS[world]
    model = fitted(scale, offset)
    truth = view_sphere(3, 3.2, 0.8, -0.8, azimuth_offset=0.3)
    images = make_toy().render(cameras(truth), torch.ones(3)).rgb.permute(0, 3, 1, 2).clamp(0, 1)
    expected = usual.model(images, cameras(truth).K)
    path = save_checkpoint(model, tmp_path / "model.ckpt")
    restored = SplatPose.load_from_checkpoint(path, map_location="cpu").eval()
    for each in (model, restored):
        prediction = each.model(images, cameras(truth).K)
        torch.testing.assert_close(prediction.pred_score, expected.pred_score, rtol=2e-3, atol=1e-4)
        assert prediction.estimated_camera_to_world.dtype == torch.float64
        angles, distances = pose_error(prediction.estimated_camera_to_world, moved(truth, scale, offset))
        expected_angles, expected_distances = pose_error(expected.estimated_camera_to_world, truth)
        torch.testing.assert_close(angles, expected_angles, rtol=0, atol=5e-5)
        torch.testing.assert_close(distances / scale, expected_distances.double(), rtol=0, atol=2e-4)
