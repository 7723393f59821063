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


def test_bank_fills_the_hole_of_the_lattice():
    cameras = Camera.from_fov(mad_lattice(3.5), 0.69, 64, 64)
    poses = bank_poses(cameras, torch.zeros(3), math.radians(8))
    torch.testing.assert_close(poses[:210], cameras.camera_to_world)
    directions = torch.nn.functional.normalize(poses[:, :3, 3], dim=-1)
    azimuth = math.radians(100)  # the middle of the hole between 80 and 120 degrees
    middle = torch.tensor([math.cos(azimuth), math.sin(azimuth), 0.0])
    assert torch.rad2deg(torch.acos((directions @ middle).max().clamp(max=1))) < 8
    torch.testing.assert_close(poses[:, :3, 3].norm(dim=-1), torch.full((len(poses),), 3.5), atol=1e-4, rtol=0)
    # Upright: the camera's x axis is horizontal.
    assert poses[210:, 2, 0].abs().max() < 0.02


def test_bank_keeps_to_where_the_cameras_were():
    front = view_sphere(200, 3.0)
    front = front[front[:, 0, 3] > 2.0]
    poses = bank_poses(Camera.from_fov(front, 0.7, 64, 64), torch.zeros(3), math.radians(8), math.radians(20))
    directions, known = (torch.nn.functional.normalize(p[:, :3, 3], dim=-1) for p in (poses, front))
    assert torch.rad2deg(torch.acos((directions @ known.T).amax(1).clamp(max=1))).max() < 20.1


def test_new_views_of_the_bank_frame_the_object_as_the_training_views_do():
    center = torch.tensor([0.2, 0.3, 0.0])  # of an object that sticks out to one side
    lattice = Camera.from_fov(mad_lattice(3.5), 0.69, 64, 64)
    added = bank_poses(lattice, center, math.radians(8))[210:]
    target, off = viewed_point(Camera.from_fov(added, 0.69, 64, 64))
    torch.testing.assert_close(target, torch.zeros(3), atol=1e-3, rtol=0)
    assert off.max() < 1e-3
    here_and_there = lattice.camera_to_world.clone()
    here_and_there[::3, :3, :3] = look_at(here_and_there[::3, :3, 3], center, torch.tensor([0.0, 0.0, 1.0]))[:, :3, :3]
    added = bank_poses(lattice.with_pose(here_and_there), center, math.radians(8))[210:]
    torch.testing.assert_close(viewed_point(Camera.from_fov(added, 0.69, 64, 64))[0], center, atol=1e-3, rtol=0)


def test_unknown_poses_are_found(fitted):
    scene, bank = fitted
    estimator = PoseEstimator(GaussNewtonRefiner(), starts=3)
    for pose in view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4):
        estimate = estimator(scene, bank, render_query(scene, pose))
        angle, distance = pose_error(estimate.camera.camera_to_world, pose)
        assert math.degrees(angle) < 0.2
        assert distance < 0.02
        assert estimate.confidence > 0.8


@pytest.mark.parametrize("retry_below", [0.5, 1.1])
def test_the_camera_has_the_focal_length_that_was_found(fitted, retry_below):
    """The query's K is off by three percent; whether polished or not, the estimate's is not."""
    scene, bank = fitted
    estimator = make_estimator(refine_focal=True)
    estimator.retry_below = retry_below
    query = render_query(scene, view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4], size=96)
    given = dataclasses.replace(query, K=scale_focal_lengths(query.K, 0.97))
    estimate = estimator(scene, bank, given)
    torch.testing.assert_close(estimate.camera.K, query.K, rtol=0.005, atol=1e-3)
    assert estimate.residual < make_estimator()(scene, bank, given).residual / 2


def test_a_doubtful_end_is_polished(fitted):
    scene, bank = fitted
    pose = view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]
    sought = []

    def lazy(scene, query, starts):
        return RefinementResult(starts[0], 1.0, converged=False, n_renders=1)

    def robust_refiner(scene, query, starts):
        sought.append(starts)
        return GaussNewtonRefiner()(scene, query, starts)

    query = render_query(scene, pose)
    doubtful = PoseEstimator(lazy, starts=1, retry_below=0.9)(scene, bank, query)
    polished = PoseEstimator(lazy, starts=1, retry_below=0.9, robust_refiner=robust_refiner)(scene, bank, query)
    assert torch.equal(sought[0][0], doubtful.camera.camera_to_world)
    assert math.degrees(pose_error(polished.camera.camera_to_world, pose)[0]) < 0.2
    assert polished.confidence > doubtful.confidence
    assert polished.n_renders > doubtful.n_renders


def turned_beside(pose, degrees):
    turned, beside = torch.eye(4), math.radians(degrees)
    turned[:2, :2] = torch.tensor([[math.cos(beside), -math.sin(beside)], [math.sin(beside), math.cos(beside)]])
    return turned @ pose


def test_an_estimate_is_corrected_on_a_changed_query_where_there_is_a_finisher(fitted):
    scene, bank = fitted
    pose = view_sphere(24, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]
    beside = turned_beside(pose, 1.5)
    seen, wanted = render_query(scene, beside), render_query(scene, pose)

    def lazy(scene, query, starts):
        return RefinementResult(beside, 1.0, converged=True, n_renders=1)

    def changed(query, camera):
        assert torch.equal(query.image, seen.image)
        assert torch.equal(camera.camera_to_world, beside)
        return wanted

    with_finisher = PoseEstimator(lazy, starts=1, relighting_refiner=GaussNewtonRefiner(coarsest=2))
    found = with_finisher(scene, bank, seen)
    corrected = with_finisher(scene, bank, seen, changed)
    assert math.degrees(pose_error(found.camera.camera_to_world, pose)[0]) == pytest.approx(1.5, abs=1e-3)
    assert math.degrees(pose_error(corrected.camera.camera_to_world, pose)[0]) < 0.1
    kept = PoseEstimator(lazy, starts=1)(scene, bank, seen, changed)
    assert torch.equal(kept.camera.camera_to_world, found.camera.camera_to_world)


@pytest.mark.parametrize("helps", [True, False])
def test_more_is_tried_only_if_the_changed_query_is_doubtful_too(fitted, helps):
    """In another light a good pose looks doubtful; brought into the scene's light it does not."""
    scene, bank = fitted
    pose = view_sphere(24, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]
    wanted, noise = render_query(scene, pose), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen, searches, changes = dataclasses.replace(wanted, image=noise), [], []

    def lazy(scene, query, starts):
        searches.append(len(starts))
        return RefinementResult(pose, 1.0, converged=True, n_renders=5)

    def changed(query, camera):
        changes.append(camera)
        return wanted if helps else query

    def relighting_refiner(scene, query, starts):
        return RefinementResult(starts[0], 1.0, converged=True, n_renders=7)

    estimate = PoseEstimator(lazy, starts=2, retry_below=0.5, relighting_refiner=relighting_refiner)(
        scene, bank, seen, changed
    )
    assert (estimate.confidence > 0.9) == helps
    assert searches == ([2] if helps else [2, 4])
    assert len(changes) == len(searches)
    judged = 1  # rendering each
    finished = judged + 7 + judged
    assert estimate.n_renders == (5 + judged + finished if helps else 2 * (5 + judged) + 2 * finished)


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
def test_box_thumbnails_find_an_object_off_the_axis():
    """Hand-held cameras: distance and aim differ, so that the frame says nothing."""
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


def test_mistakes_are_named(fitted):
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
