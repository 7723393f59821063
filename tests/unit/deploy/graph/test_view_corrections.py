# SPDX-License-Identifier: Apache-2.0
"""Rasterized references are corrected as the model corrects its renderings."""

import pytest
import torch

from anomalib_pose.compare import CalibratedComparator
from anomalib_pose.deploy import DetectorSettings, FeedForwardDetector, build_detector
from anomalib_pose.deploy.graph.view_corrections import ViewCorrections, corrections_megabytes
from anomalib_pose.deploy.graph.view_synthesis import GraphRendering
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


def photograph_with_bands(scene, camera: Camera) -> torch.Tensor:
    """Render the object (3, H, W) with bands painted on its surface, which the scene does not have."""
    output = scene.render(camera, torch.ones(3))
    bands = 0.15 * torch.sin(9 * camera.unproject(output.depth)[..., 1]) * (output.alpha > 0.5)
    return (output.rgb + bands[..., None]).clamp(0, 1).permute(2, 0, 1)


@pytest.fixture(scope="module")
def nearby(scene) -> NearbyViews:
    views = NearbyViews(3)
    views.store_residuals(
        scene, torch.stack([photograph_with_bands(scene, CAMERAS[index]) for index in range(len(CAMERAS))]), CAMERAS
    )
    return views


def corrected(scene, corrections: ViewCorrections, camera: Camera) -> torch.Tensor:
    output = scene.render(camera, torch.ones(3))
    rgb, alpha = output.rgb.permute(2, 0, 1)[None], output.alpha[None]
    rendering = GraphRendering(rgb, alpha, torch.ones_like(alpha), output.depth[None] / UNIT)
    pose = camera.camera_to_world[None].clone()
    pose[:, :3, 3] /= UNIT
    return corrections(rendering, pose, INTRINSICS[None])[0]


def test_corrected_renderings_agree_with_the_twins(scene, nearby):
    corrections = ViewCorrections.from_nearby(nearby, UNIT, 1.0, 1000)
    assert len(corrections) == len(CAMERAS)
    for index in range(len(QUERIES)):
        output = scene.render(QUERIES[index], torch.ones(3))
        expected = nearby.correct_rendering(output, QUERIES[index]).rgb.permute(2, 0, 1).clamp(0, 1)
        change = expected - output.rgb.permute(2, 0, 1).clamp(0, 1)
        assert change.square().mean().sqrt() > 0.01
        actual = corrected(scene, corrections, QUERIES[index])
        assert (actual - expected).square().mean() < 0.15**2 * change.square().mean()


def test_fewer_and_smaller_photographs_still_correct_references(scene, nearby):
    corrections = ViewCorrections.from_nearby(nearby, UNIT, 0.5, 40)
    assert len(corrections) == 40
    assert max(corrections.views.shape[2:]) <= SIZE / 2
    for index in range(len(QUERIES)):
        truth = photograph_with_bands(scene, QUERIES[index])
        before = scene.render(QUERIES[index], torch.ones(3)).rgb.permute(2, 0, 1)
        after = corrected(scene, corrections, QUERIES[index])
        assert (after - truth).square().mean() < 0.6**2 * (before - truth).square().mean()


def build(scene, settings: DetectorSettings, nearby: NearbyViews | None) -> FeedForwardDetector:
    poses = CAMERAS.camera_to_world
    return build_detector(scene, poses, CAMERA, CalibratedComparator(), settings, white_background=True, nearby=nearby)


def test_corrections_halve_the_error_of_rasterized_references(scene, nearby):
    settings = DetectorSettings(views=150, size=SIZE, oversampling=1.0)
    errors = {}
    for name, views in (("plain", None), ("corrected", nearby)):
        detector = build(scene, settings, views)
        assert (detector.corrections is None) == (views is None)
        images = torch.stack([photograph_with_bands(scene, QUERIES[index]) for index in range(len(QUERIES))])
        output = detector.reference(images)
        errors[name] = (output.reference - output.query).square().mean().sqrt()
    assert errors["corrected"] < 0.5 * errors["plain"]


def test_the_size_includes_the_photographs(scene, nearby):
    height, width = nearby.depths.shape[1:]
    assert corrections_megabytes(nearby, 1.0, 50) == pytest.approx(50 * 4 * height * width / 1e6)
    assert corrections_megabytes(nearby, 0.5, 1000) == pytest.approx(
        len(CAMERAS) * 4 * round(height / 2) * round(width / 2) / 1e6
    )
    settings = DetectorSettings(views=40, size=SIZE, max_megabytes=1)
    with pytest.raises(ValueError, match=r"corrected by \d+ MB of photographs"):
        build(scene, settings, nearby)
