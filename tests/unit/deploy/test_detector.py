# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch

from anomalib_pose.compare import CalibratedComparator, SurfaceStatistics
from anomalib_pose.compare.maps import largest_around
from anomalib_pose.compare.synthetic_defects import add_synthetic_defects
from anomalib_pose.deploy import DetectorSettings, FeedForwardDetector, build_detector
from anomalib_pose.geometry import Camera, pose_error, view_sphere
from sample_detector import CAMERA, POSES, QUERIES, SIZE, make_detector, photograph
from sample_scenes import make_toy


@pytest.fixture(scope="module")
def detector() -> FeedForwardDetector:
    return make_detector()


def test_largest_around_is_the_maximum_of_the_square():
    image = torch.randn(2, 11, 13, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), value=-torch.inf)
    assert torch.equal(largest_around(image, 5), padded.unfold(1, 5, 1).unfold(2, 5, 1).amax((3, 4)))


def window_camera(detector: FeedForwardDetector) -> Camera:
    """Camera of the detector's window, at the origin."""
    fx, fy, cx, cy = detector.bank.pinhole(torch.tensor([0]))[0].tolist()
    return Camera(torch.eye(4), torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), *reversed(detector.size))


def test_poses_are_estimated_and_references_agree_with_renderings(detector):
    images = torch.stack([photograph(pose) for pose in QUERIES])
    points = make_toy().means
    query, reference, alpha, surface, poses = detector.reference(images)
    for estimate, truth in zip(poses, QUERIES, strict=True):
        # Rotation and translation of a small smooth toy look alike: compare the projections of its points.
        assert math.degrees(pose_error(estimate, truth)[0]) < 3
        projected, expected = (CAMERA.with_pose(pose).project(points)[0] for pose in (estimate, truth))
        assert (projected - expected).norm(dim=-1).mean() < 0.8
    different = (query - reference).abs().amax(1) > 0.2
    assert different.float().mean() < 0.01
    cameras = window_camera(detector).with_pose(poses)
    expected_surface = cameras.unproject(make_toy().render(cameras).depth)
    # The toy is a shell that is not quite opaque: at grazing angles the expected depth depends on the side.
    assert (surface - expected_surface)[alpha > 0.9].norm(dim=-1).median() < 0.06


def test_a_surface_with_large_normal_residuals_counts_less(detector):
    def glossy(pose: torch.Tensor) -> torch.Tensor:
        output = make_toy().render(CAMERA.with_pose(pose), torch.ones(3))
        top = (CAMERA.with_pose(pose).unproject(output.depth)[..., 2] > 0.3) & (output.alpha > 0.5)
        return torch.where(top, 0.7, 1.0) * photograph(pose)

    images = torch.stack([glossy(pose) for pose in view_sphere(12, 3.0, 1.2, 0.0, azimuth_offset=0.2)])
    query = torch.stack([glossy(pose) for pose in view_sphere(5, 3.0, 1.0, 0.4, azimuth_offset=0.7)])
    patient, alike = copy.deepcopy(detector), copy.deepcopy(detector)
    alike.calibrate(images)
    good = alike.reference(images)
    surface = SurfaceStatistics()
    maps = alike.comparator.compare_windows(*good[:3])
    surface.fit(zip(maps, good.points, good.alpha, strict=True), make_toy().center, make_toy().extent)
    patient.calibrate(images, surface)
    reference = patient.reference(query)
    top = (reference.points[..., 2] > 0.35) & (reference.alpha > 0.9)
    elsewhere = (reference.points[..., 2] < 0.1) & (reference.alpha > 0.9)
    share = patient(query).anomaly_map[:, 0] / alike(query).anomaly_map[:, 0].clamp(min=1e-6)
    window_share = detector.crop(share[:, None].expand(-1, 3, -1, -1))[:, 0]
    assert window_share[top].median() < 0.9
    assert window_share[elsewhere].median() > 0.95


def test_images_of_a_batch_do_not_depend_on_each_other_and_maps_have_the_size_of_the_images(detector):
    images = torch.stack([photograph(pose, 130) for pose in QUERIES[:3]])
    batch = detector(images)
    assert batch.anomaly_map.shape == (3, 1, 130, 130)
    for index in range(3):
        single = detector(images[index : index + 1])
        torch.testing.assert_close(single.pred_score[0], batch.pred_score[index], atol=1e-3, rtol=1e-3)


def test_a_defect_scores_above_normal_views_and_is_localized(detector):
    normal = torch.stack([photograph(pose) for pose in QUERIES])
    detector.calibrate(normal)
    defective = normal.clone()
    defective[:, :, 44:52, 44:52] = torch.tensor([0.1, 0.9, 0.1])[:, None, None]
    assert detector(defective).pred_score.min() > detector(normal).pred_score.max()
    peaks = detector(defective).anomaly_map[:, 0].flatten(1).argmax(1)
    assert ((peaks // SIZE - 48).abs() < 8).all()
    assert ((peaks % SIZE - 48).abs() < 8).all()


def test_synthetic_defects_are_seeded_and_local():
    images = torch.stack([photograph(pose) for pose in QUERIES])
    first, second = add_synthetic_defects(images, 3), add_synthetic_defects(images, 3)
    assert torch.equal(first, second)
    changed = ((first - images).abs().amax(1) > 0.05).float().mean((1, 2))
    assert (changed < 0.2).all()
    assert (changed > 0).sum() >= 5


def test_rasterized_references_may_be_finer_than_the_bank(detector):
    settings = DetectorSettings(views=150, size=SIZE, drawn_size=2 * SIZE)
    camera = CAMERA.resized(3 * SIZE, 3 * SIZE)
    fine = build_detector(make_toy(), POSES, camera, CalibratedComparator(), settings, white_background=True)
    assert fine.bank.views.shape == detector.bank.views.shape
    images = torch.stack([photograph(pose, 3 * SIZE) for pose in QUERIES])
    output = fine.reference(images)
    renderings = make_toy().render(camera.with_pose(output.camera_to_world), torch.ones(3))
    expected = fine.crop(renderings.rgb.permute(0, 3, 1, 2))
    height, width = expected.shape[-2:]
    assert max(height, width) == 2 * SIZE
    assert (output.reference - expected).abs().mean() < 2e-3
    coarse = torch.nn.functional.avg_pool2d(expected, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (output.reference - expected).abs().mean() < 0.5 * (coarse - expected).abs().mean()
    # the surface point of each pixel projects to that pixel
    window = fine.window.camera(camera, height, width).with_pose(output.camera_to_world)
    projected = torch.stack(
        [window[index].project(output.points[index].flatten(0, 1))[0] for index in range(len(images))]
    )
    axes = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    pixels = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).flatten(0, 1)
    opaque = output.alpha.flatten(1) > 0.5
    torch.testing.assert_close(projected[opaque], pixels.expand_as(projected)[opaque], atol=0.02, rtol=0)


def test_under_another_light_the_camera_is_estimated_and_the_reference_is_relit():
    normal = torch.stack([photograph(pose) for pose in QUERIES])
    background = 1 - torch.stack([make_toy().render(CAMERA.with_pose(pose), torch.ones(3)).alpha for pose in QUERIES])
    dark = background[:, None] + (normal - background[:, None]) * torch.tensor([0.7, 0.5, 0.3])[:, None, None]
    settings, degrees, differences = DetectorSettings(views=150, size=SIZE), [], []
    for relight in (False, True):
        detector = build_detector(
            make_toy(), POSES, CAMERA, CalibratedComparator(), settings, white_background=True, relight=relight
        )
        output = detector.reference(dark)
        pairs = zip(output.camera_to_world.double(), QUERIES.double(), strict=True)
        errors = [pose_error(estimate, truth)[0] for estimate, truth in pairs]
        degrees.append(float(torch.rad2deg(torch.stack(errors)).median()))
        inside = (output.alpha > 0.9)[:, None].expand_as(output.query)
        differences.append(float((output.reference - output.query)[inside].abs().median()))
    assert degrees[1] < 2 < 5 < degrees[0]
    assert differences[1] < 0.03 < 0.1 < differences[0]
