# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math

import pytest
import torch

from anomalib_pose.geometry import (
    Camera,
    look_at,
    mad_lattice,
    pose_error,
    scale_focal_lengths,
    view_sphere,
    viewed_point,
)
from anomalib_pose.pose import (
    GaussNewtonRefiner,
    PoseEstimator,
    Query,
    RefinementResult,
    ViewBank,
    bank_poses,
    make_estimator,
    make_refiner,
)
from sample_scenes import make_toy

UP = torch.tensor([0.0, 0, 1])
TRAINING = Camera.from_fov(view_sphere(40, 3.0, 1.2, -1.2), 0.7, 64, 64)


@pytest.fixture(scope="module")
def fitted():
    scene, bank = make_toy(), ViewBank(12.0)
    bank.build(scene, TRAINING)
    return scene, bank


def render_query(scene, pose: torch.Tensor, *, size: int = 64) -> Query:
    camera = Camera.from_fov(pose, 0.7, size, size)
    output = scene.render(camera, torch.ones(3))
    return Query(output.rgb.permute(2, 0, 1).clamp(0, 1), camera.K, (output.alpha > 0.5).float())


def test_bank_fills_the_gap_of_the_lattice():
    cameras = Camera.from_fov(mad_lattice(3.5), 0.69, 64, 64)
    poses = bank_poses(cameras, torch.zeros(3), math.radians(8))
    torch.testing.assert_close(poses[:210], cameras.camera_to_world)
    directions = torch.nn.functional.normalize(poses[:, :3, 3], dim=-1)
    azimuth = math.radians(100)  # the middle of the gap between 80 and 120 degrees
    middle = torch.tensor([math.cos(azimuth), math.sin(azimuth), 0.0])
    assert torch.rad2deg(torch.acos((directions @ middle).max().clamp(max=1))) < 8
    torch.testing.assert_close(poses[:, :3, 3].norm(dim=-1), torch.full((len(poses),), 3.5), atol=1e-4, rtol=0)
    # Upright: the camera's x axis is horizontal.
    assert poses[210:, 2, 0].abs().max() < 0.02


def test_bank_stays_near_the_training_poses():
    front = view_sphere(200, 3.0)
    front = front[front[:, 0, 3] > 2.0]
    poses = bank_poses(Camera.from_fov(front, 0.7, 64, 64), torch.zeros(3), math.radians(8), math.radians(20))
    directions, training = (torch.nn.functional.normalize(p[:, :3, 3], dim=-1) for p in (poses, front))
    assert torch.rad2deg(torch.acos((directions @ training.T).amax(1).clamp(max=1))).max() < 20.1


def test_new_views_of_the_bank_look_where_the_training_views_look():
    center = torch.tensor([0.2, 0.3, 0.0])  # the object extends to one side
    lattice = Camera.from_fov(mad_lattice(3.5), 0.69, 64, 64)
    added = bank_poses(lattice, center, math.radians(8))[210:]
    target, axis_distances = viewed_point(Camera.from_fov(added, 0.69, 64, 64))
    torch.testing.assert_close(target, torch.zeros(3), atol=1e-3, rtol=0)
    assert axis_distances.max() < 1e-3
    mixed_poses = lattice.camera_to_world.clone()
    mixed_poses[::3, :3, :3] = look_at(mixed_poses[::3, :3, 3], center, torch.tensor([0.0, 0.0, 1.0]))[:, :3, :3]
    added = bank_poses(lattice.with_pose(mixed_poses), center, math.radians(8))[210:]
    torch.testing.assert_close(viewed_point(Camera.from_fov(added, 0.69, 64, 64))[0], center, atol=1e-3, rtol=0)


def test_the_estimator_recovers_poses_between_the_training_views(fitted):
    scene, bank = fitted
    estimator = PoseEstimator(GaussNewtonRefiner(), starts=3)
    for pose in view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4):
        estimate = estimator(scene, bank, render_query(scene, pose))
        angle, distance = pose_error(estimate.camera.camera_to_world, pose)
        assert math.degrees(angle) < 0.2
        assert distance < 0.02
        assert estimate.confidence > 0.8


@pytest.mark.parametrize("retry_below", [0.5, 1.1])
def test_the_estimate_has_the_refined_focal_length(fitted, retry_below):
    """The query's K is off by three percent. The estimate's K is right, with and without the robust refiner."""
    scene, bank = fitted
    estimator = make_estimator(refine_focal=True)
    estimator.retry_below = retry_below
    query = render_query(scene, view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4], size=96)
    wrong_query = dataclasses.replace(query, K=scale_focal_lengths(query.K, 0.97))
    estimate = estimator(scene, bank, wrong_query)
    torch.testing.assert_close(estimate.camera.K, query.K, rtol=0.005, atol=1e-3)
    assert estimate.residual < make_estimator()(scene, bank, wrong_query).residual / 2


def test_the_robust_refiner_improves_a_low_confidence_estimate(fitted):
    scene, bank = fitted
    pose = view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]
    robust_initial_poses = []

    def idle_refiner(scene, query, initial_poses):
        return RefinementResult(initial_poses[0], 1.0, converged=False, n_renders=1)

    def robust_refiner(scene, query, initial_poses):
        robust_initial_poses.append(initial_poses)
        return GaussNewtonRefiner()(scene, query, initial_poses)

    query = render_query(scene, pose)
    options = {"starts": 1, "retry_below": 0.9}
    unrefined = PoseEstimator(idle_refiner, **options)(scene, bank, query)
    refined = PoseEstimator(idle_refiner, **options, robust_refiner=robust_refiner)(scene, bank, query)
    assert torch.equal(robust_initial_poses[0][0], unrefined.camera.camera_to_world)
    assert math.degrees(pose_error(refined.camera.camera_to_world, pose)[0]) < 0.2
    assert refined.confidence > unrefined.confidence
    assert refined.n_renders > unrefined.n_renders


def rotate_about_z(pose, degrees):
    rotation, angle = torch.eye(4), math.radians(degrees)
    rotation[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return rotation @ pose


def test_the_relighting_refiner_corrects_the_estimate_on_the_relighted_query(fitted):
    scene, bank = fitted
    pose = view_sphere(24, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]
    wrong_pose = rotate_about_z(pose, 1.5)
    query, relighted_query = render_query(scene, wrong_pose), render_query(scene, pose)

    def idle_refiner(scene, query, initial_poses):
        return RefinementResult(wrong_pose, 1.0, converged=True, n_renders=1)

    def relight_query(original_query, camera):
        assert torch.equal(original_query.image, query.image)
        assert torch.equal(camera.camera_to_world, wrong_pose)
        return relighted_query

    estimator = PoseEstimator(idle_refiner, starts=1, relighting_refiner=GaussNewtonRefiner(coarsest=2))
    uncorrected = estimator(scene, bank, query)
    corrected = estimator(scene, bank, query, relight_query)
    assert math.degrees(pose_error(uncorrected.camera.camera_to_world, pose)[0]) == pytest.approx(1.5, abs=1e-3)
    assert math.degrees(pose_error(corrected.camera.camera_to_world, pose)[0]) < 0.1
    without_refiner = PoseEstimator(idle_refiner, starts=1)(scene, bank, query, relight_query)
    assert torch.equal(without_refiner.camera.camera_to_world, uncorrected.camera.camera_to_world)


@pytest.mark.parametrize("relighting_helps", [True, False])
def test_further_hypotheses_are_tried_only_if_relighting_does_not_raise_the_confidence(fitted, relighting_helps):
    """In other light a right pose has a low confidence. In the scene's light it has a high one."""
    scene, bank = fitted
    pose = view_sphere(24, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]
    clean_query, noise = render_query(scene, pose), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    noisy_query, pose_counts, relighting_cameras = dataclasses.replace(clean_query, image=noise), [], []

    def idle_refiner(scene, query, initial_poses):
        pose_counts.append(len(initial_poses))
        return RefinementResult(pose, 1.0, converged=True, n_renders=5)

    def relight_query(query, camera):
        relighting_cameras.append(camera)
        return clean_query if relighting_helps else query

    def relighting_refiner(scene, query, initial_poses):
        return RefinementResult(initial_poses[0], 1.0, converged=True, n_renders=7)

    estimator = PoseEstimator(idle_refiner, starts=2, retry_below=0.5, relighting_refiner=relighting_refiner)
    estimate = estimator(scene, bank, noisy_query, relight_query)
    assert (estimate.confidence > 0.9) == relighting_helps
    assert pose_counts == ([2] if relighting_helps else [2, 4])
    assert len(relighting_cameras) == len(pose_counts)
    rating = 1  # each rating renders once
    relighting = rating + 7 + rating
    assert estimate.n_renders == (5 + rating + relighting if relighting_helps else 2 * (5 + rating) + 2 * relighting)


def test_query_without_an_object_has_a_low_confidence_and_finite_residual(fitted):
    scene, bank = fitted
    estimator = PoseEstimator(GaussNewtonRefiner(), starts=2)
    for foreground in (torch.zeros(64, 64), None):
        estimate = estimator(scene, bank, Query(torch.ones(3, 64, 64), TRAINING.K[0], foreground))
        assert estimate.confidence < 0.2
        assert math.isfinite(estimate.residual)
        assert estimate.camera.camera_to_world.isfinite().all()
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert estimator(scene, bank, Query(noise, TRAINING.K[0])).confidence < 0.3


@pytest.mark.slow
def test_box_thumbnails_localize_an_off_center_object():
    """Hand-held cameras differ in distance and aim, so thumbnails of the whole frame do not match."""
    generator = torch.Generator().manual_seed(1)
    eyes = view_sphere(60, 1.0, 1.0, -0.5)[:, :3, 3] * (2.5 + torch.rand(60, 1, generator=generator))
    poses = torch.stack([look_at(eye, 0.3 * torch.randn(3, generator=generator), UP) for eye in eyes])
    cameras = Camera.from_fov(poses, 0.9, 64, 64)
    scene, bank = make_toy(), ViewBank(12.0)
    bank.build(scene, cameras[:50])
    assert bool(bank.by_box)
    estimator = PoseEstimator(GaussNewtonRefiner(), starts=4)
    for index in range(50, 60):
        output = scene.render(cameras[index], torch.ones(3))
        query = Query(output.rgb.permute(2, 0, 1).clamp(0, 1), cameras.K[index], (output.alpha > 0.5).float())
        estimate = estimator(scene, bank, query)
        assert math.degrees(pose_error(estimate.camera.camera_to_world, poses[index])[0]) < 1, index


def test_bank_reloads_with_another_number_of_views(fitted):
    scene, bank = fitted
    other = ViewBank(12.0)
    other.load_state_dict(bank.state_dict())
    query = render_query(scene, view_sphere(7, 3.0)[3])
    for first, second in zip(bank.nearest(query, 3), other.nearest(query, 3), strict=True):
        torch.testing.assert_close(first, second)


def test_error_messages_name_the_wrong_argument(fitted):
    scene, _ = fitted
    with pytest.raises(ValueError, match="bank is empty"):
        ViewBank().nearest(render_query(scene, view_sphere(3, 3.0)[0]), 1)
    with pytest.raises(ValueError, match="At least one start"):
        PoseEstimator(GaussNewtonRefiner(), starts=0)
    with pytest.raises(ValueError, match="'gauss_newton', 'adam', 'inerf', 'reflectance', got"):
        make_refiner("magic")
    with pytest.raises(ValueError, match="needs the refiner 'gauss_newton', got 'adam'"):
        make_refiner("adam", refine_focal=True)
    with pytest.raises(ValueError, match="angle in degrees above 0"):
        ViewBank(0.0)
