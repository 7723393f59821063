# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from anomalib_pose.geometry import Camera, look_at, pose_error, view_sphere
from anomalib_pose.pose import FeatureLocalizer, GaussNewtonRefiner, PoseEstimator, Query, RefinementResult, ViewBank
from anomalib_pose.pose.matching import solve_pnp, surface_points
from sample_scenes import make_toy

UP = torch.tensor([0.0, 0, 1])
TRUTH = Camera.from_fov(look_at(torch.tensor([1.2, -2.5, 1.0]), torch.zeros(3), UP), 0.7, 96, 72)
VIEWS = view_sphere(5, 3.0, 0.8, -0.8)


class PerfectMatcher:
    """Matches surface points of the views with their true pixels in the query; a fraction are random outliers."""

    def __init__(self, scene, count: int = 60, outliers: float = 0.0, poses: torch.Tensor = VIEWS) -> None:
        self.scene = scene
        self.poses = poses
        self.count = count
        self.outliers = outliers

    def load(self) -> None:
        pass

    def __call__(self, image, views):
        height, width = image.shape[-2:]
        generator = torch.Generator().manual_seed(1)
        camera = TRUTH.resized(width, height)
        matches = []
        for pose in self.poses[: len(views)]:
            output = self.scene.render(camera.with_pose(pose))
            inside = torch.nn.functional.avg_pool2d(output.alpha[None], 5, 1, 2)[0] > 0.99
            rows, columns = inside.nonzero(as_tuple=True)
            indices = torch.randperm(len(rows), generator=generator)[: self.count]
            pixels = torch.stack([columns[indices], rows[indices]], 1) + 0.5
            points = camera.with_pose(pose).unproject(output.depth)[rows[indices], columns[indices]]
            query_pixels = camera.project(points)[0]
            wrong = torch.rand(len(indices), generator=generator) < self.outliers
            random_pixels = torch.rand(len(indices), 2, generator=generator) * torch.tensor([width, height])
            matches.append((torch.where(wrong[:, None], random_pixels, query_pixels), pixels))
        return matches


class FixedBank(ViewBank):
    """A bank that returns the same poses for each query; none of the default poses is close to the query's."""

    def __init__(self, fixed_poses: torch.Tensor = VIEWS) -> None:
        super().__init__()
        self.fixed_poses = fixed_poses

    def nearest(self, query, count):
        return self.fixed_poses[:count], torch.ones(len(self.fixed_poses[:count]))


def render_query(scene) -> Query:
    output = scene.render(TRUTH, torch.ones(3))
    return Query(output.rgb.permute(2, 0, 1).clamp(0, 1), TRUTH.K)


def idle_refiner(scene, query, initial_poses) -> RefinementResult:
    return RefinementResult(initial_poses[0], 1.0, converged=False, n_renders=1)


@pytest.mark.parametrize("size", [48, 96, 150])
def test_the_pose_is_recovered_despite_outliers(size):
    scene = make_toy()
    localizer = FeatureLocalizer(PerfectMatcher(scene, outliers=0.4), size=size, tolerance=1.0)
    pose, *_ = localizer(scene, render_query(scene), VIEWS)
    angle, distance = pose_error(pose, TRUTH.camera_to_world)
    assert math.degrees(angle) < 0.05
    assert distance < 0.005


def test_the_second_pose_comes_from_the_minority_of_matches():
    """Three of five views show a look-alike side. Their matches agree on a pose on the opposite side."""

    class Lookalike(PerfectMatcher):
        def __call__(self, image, views):
            matches = super().__call__(image, views)
            camera = TRUTH.resized(image.shape[-1], image.shape[-2])
            half_turn = torch.tensor([-1.0, -1, 1]).diag()  # about the object's axis
            for index in range(3):
                pose, view_pixels = VIEWS[index], matches[index][1]
                output = self.scene.render(camera.with_pose(pose))
                points, _ = surface_points(camera.with_pose(pose), output.depth, output.alpha, view_pixels)
                matches[index] = (camera.project(points @ half_turn.T)[0], view_pixels)
            return matches

    scene = make_toy()
    first, second = FeatureLocalizer(Lookalike(scene))(scene, render_query(scene), VIEWS)
    assert math.degrees(pose_error(first, TRUTH.camera_to_world)[0]) > 170
    assert math.degrees(pose_error(second, TRUTH.camera_to_world)[0]) < 0.05


def test_inliers_are_the_undisturbed_correspondences():
    generator = torch.Generator().manual_seed(0)
    points = 0.4 * torch.randn(60, 3, generator=generator)
    pixels, _ = TRUTH.project(points)
    wrong = torch.arange(60) % 5 < 2
    pixels[wrong] += 8 + 20 * torch.rand(24, 2, generator=generator)
    pose, inliers = solve_pnp(points, pixels, TRUTH.K, 1.0)
    assert torch.equal(inliers, ~wrong)
    torch.testing.assert_close(pose, TRUTH.camera_to_world, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_pose():
    scene = make_toy()
    poses = [
        FeatureLocalizer(PerfectMatcher(scene, outliers=0.4), seed=3)(scene, render_query(scene), VIEWS)
        for _ in range(2)
    ]
    assert torch.equal(*poses)


def test_matches_outside_the_mask_do_not_count():
    scene = make_toy()
    query = render_query(scene)
    empty = Query(query.image, query.K, torch.zeros(72, 96))
    assert not len(FeatureLocalizer(PerfectMatcher(scene))(scene, empty, VIEWS))


def test_feature_matching_localizes_a_low_confidence_query():
    scene, query = make_toy(), render_query(make_toy())
    opposite_poses = look_at(torch.tensor([[-1.2, 2.5, -1.0], [-1.5, 2.2, -0.5]]), torch.zeros(3), UP)
    bank = FixedBank(opposite_poses)
    failed = PoseEstimator(GaussNewtonRefiner(), starts=1)(scene, bank, query)
    assert math.degrees(pose_error(failed.camera.camera_to_world, TRUTH.camera_to_world)[0]) > 10
    assert failed.confidence < 0.5
    localizer = FeatureLocalizer(PerfectMatcher(scene, outliers=0.4, poses=opposite_poses))
    localized = PoseEstimator(GaussNewtonRefiner(), starts=1, feature_localizer=localizer)(scene, bank, query)
    assert math.degrees(pose_error(localized.camera.camera_to_world, TRUTH.camera_to_world)[0]) < 0.1
    assert localized.confidence > 0.8
    assert localized.n_renders > failed.n_renders + 2


def test_features_of_a_high_confidence_query_are_not_matched():
    class RaisingMatcher(PerfectMatcher):
        def __call__(self, image, views):
            raise AssertionError

    scene = make_toy()
    estimator = PoseEstimator(idle_refiner, starts=1, feature_localizer=FeatureLocalizer(RaisingMatcher(scene)))
    estimate = estimator(scene, FixedBank(TRUTH.camera_to_world[None]), render_query(scene))
    assert estimate.confidence > 0.9


def test_too_few_matches_do_not_change_the_estimate():
    scene, query = make_toy(), render_query(make_toy())
    localizer = FeatureLocalizer(PerfectMatcher(scene, count=1))
    assert not len(localizer(scene, query, VIEWS))
    before = PoseEstimator(idle_refiner, starts=1)(scene, FixedBank(), query)
    after = PoseEstimator(idle_refiner, starts=1, feature_localizer=localizer)(scene, FixedBank(), query)
    assert torch.equal(after.camera.camera_to_world, before.camera.camera_to_world)
    assert after.confidence == before.confidence
    assert after.n_renders == before.n_renders + 3


def test_a_worse_pose_does_not_replace_the_estimate():
    """All matches are wrong, so the estimate keeps the higher confidence."""
    scene, query = make_toy(), render_query(make_toy())

    class WrongMatcher(PerfectMatcher):
        def __call__(self, image, views):
            return [(view_pixels.flip(1), view_pixels) for _, view_pixels in super().__call__(image, views)]

    estimator = PoseEstimator(
        idle_refiner, starts=1, retry_below=1.1, feature_localizer=FeatureLocalizer(WrongMatcher(scene))
    )
    estimate = estimator(scene, FixedBank(TRUTH.camera_to_world[None]), query)
    assert torch.equal(estimate.camera.camera_to_world, TRUTH.camera_to_world)


def test_points_between_pixels_lie_on_the_surface():
    """The surface is a tilted plane, whose intersection with a ray has a closed form."""
    normal, offset = torch.tensor([0.2, -0.9, 0.4]), 0.1
    pixels = 8 + torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([80.0, 56.0])

    def on_plane(uv: torch.Tensor) -> torch.Tensor:
        slopes = (uv - TRUTH.K[:2, 2]) / TRUTH.K[[0, 1], [0, 1]]
        rays = torch.cat([slopes, torch.ones(len(uv), 1)], 1) @ TRUTH.camera_to_world[:3, :3].T
        return TRUTH.center + (offset - TRUTH.center @ normal) / (rays @ normal)[:, None] * rays

    rows, columns = torch.meshgrid(torch.arange(72) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    corners = on_plane(torch.stack([columns, rows], -1).reshape(-1, 2))
    depth = TRUTH.project(corners)[1].reshape(72, 96)
    alpha = torch.ones(72, 96)
    alpha[:, 48:] = 0
    points, valid = surface_points(TRUTH, depth, alpha, pixels)
    torch.testing.assert_close(points[valid], on_plane(pixels)[valid], atol=2e-3, rtol=0)
    assert torch.equal(valid, pixels[:, 0] <= 47.5)


def test_pnp_without_inliers_returns_none():
    generator = torch.Generator().manual_seed(0)
    points, pixels = torch.randn(20, 3, generator=generator), torch.rand(20, 2, generator=generator) * 90
    for correspondences in ((points, pixels), (points[:5], pixels[:5]), (torch.zeros(8, 3), pixels[:8])):
        pose, inliers = solve_pnp(*correspondences, TRUTH.K, 1.0)
        assert pose is None
        assert not inliers.any()
