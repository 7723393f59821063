# SPDX-License-Identifier: Apache-2.0
"""Drawings are corrected as the model corrects its renderings."""

import pytest
import torch

from anomalib_pose.compare import CalibratedComparator
from anomalib_pose.deploy import DetectorSettings, FeedForwardDetector, build_detector
from anomalib_pose.deploy.graph.view_corrections import ViewCorrections, corrections_megabytes
from anomalib_pose.deploy.graph.view_synthesis import Synthesis
from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.scene import NearbyViews
from sample_scenes import make_toy

SIZE = 64
UNIT = 2.7
CAMERA = Camera.from_fov(torch.eye(4), 0.7, SIZE, SIZE)
CAMERAS = CAMERA.with_pose(view_sphere(120, 3.0))
QUERIES = CAMERA.with_pose(view_sphere(7, 3.1, 1.2, -1.1))
INTRINSICS = CAMERA.K[[0, 1, 0, 1], [0, 1, 2, 2]]


@pytest.fixture(scope="module")
def scene():
    return make_toy()


def painted(scene, camera: Camera) -> torch.Tensor:
    """A photograph of the object with bands painted on its surface, which the scene does not know (3, H, W)."""
    output = scene.render(camera, torch.ones(3))
    bands = 0.15 * torch.sin(9 * camera.unproject(output.depth)[..., 1]) * (output.alpha > 0.5)
    return (output.rgb + bands[..., None]).clamp(0, 1).permute(2, 0, 1)


@pytest.fixture(scope="module")
def nearby(scene) -> NearbyViews:
    views = NearbyViews(3)
    views.store_residuals(
        scene, torch.stack([painted(scene, CAMERAS[index]) for index in range(len(CAMERAS))]), CAMERAS
    )
    return views


def corrected(scene, corrections: ViewCorrections, camera: Camera) -> torch.Tensor:
    output = scene.render(camera, torch.ones(3))
    rgb, alpha = output.rgb.permute(2, 0, 1)[None], output.alpha[None]
    seen = Synthesis(rgb, alpha, torch.ones_like(alpha), output.depth[None] / UNIT)
    pose = camera.camera_to_world[None].clone()
    pose[:, :3, 3] /= UNIT
    return corrections(seen, pose, INTRINSICS[None])[0]


def test_drawings_become_what_the_models_renderings_become(scene, nearby):
    corrections = ViewCorrections.of(nearby, UNIT, 1.0, 1000)
    assert len(corrections) == len(CAMERAS)
    for index in range(len(QUERIES)):
        output = scene.render(QUERIES[index], torch.ones(3))
        expected = nearby.correct_rendering(output, QUERIES[index]).rgb.permute(2, 0, 1).clamp(0, 1)
        change = expected - output.rgb.permute(2, 0, 1).clamp(0, 1)
        assert change.square().mean().sqrt() > 0.01
        found = corrected(scene, corrections, QUERIES[index])
        assert (found - expected).square().mean() < 0.15**2 * change.square().mean()


def test_fewer_and_smaller_photographs_still_show_what_is_painted(scene, nearby):
    corrections = ViewCorrections.of(nearby, UNIT, 0.5, 40)
    assert len(corrections) == 40
    assert max(corrections.views.shape[2:]) <= SIZE / 2
    for index in range(len(QUERIES)):
        truth = painted(scene, QUERIES[index])
        before = scene.render(QUERIES[index], torch.ones(3)).rgb.permute(2, 0, 1)
        after = corrected(scene, corrections, QUERIES[index])
        assert (after - truth).square().mean() < 0.6**2 * (before - truth).square().mean()


def built(scene, settings: DetectorSettings, nearby: NearbyViews | None) -> FeedForwardDetector:
    poses = CAMERAS.camera_to_world
    return build_detector(scene, poses, CAMERA, CalibratedComparator(), settings, white_background=True, nearby=nearby)


def test_a_detector_that_draws_compares_with_what_photographs_show(scene, nearby):
    settings = DetectorSettings(views=150, size=SIZE, oversampling=1.0)
    errors = {}
    for name, views in (("plain", None), ("corrected", nearby)):
        detector = built(scene, settings, views)
        assert (detector.corrections is None) == (views is None)
        images = torch.stack([painted(scene, QUERIES[index]) for index in range(len(QUERIES))])
        found = detector.reference(images)
        errors[name] = (found.rgb - found.query).square().mean().sqrt()
    assert errors["corrected"] < 0.5 * errors["plain"]


def test_photographs_count_for_the_size(scene, nearby):
    height, width = nearby.depths.shape[1:]
    assert corrections_megabytes(nearby, 1.0, 50) == pytest.approx(50 * 4 * height * width / 1e6)
    assert corrections_megabytes(nearby, 0.5, 1000) == pytest.approx(
        len(CAMERAS) * 4 * round(height / 2) * round(width / 2) / 1e6
    )
    settings = DetectorSettings(views=40, size=SIZE, max_megabytes=1)
    with pytest.raises(ValueError, match=r"corrected by \d+ MB of photographs"):
        built(scene, settings, nearby)
