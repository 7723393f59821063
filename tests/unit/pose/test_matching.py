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
OTHERS = view_sphere(5, 3.0, 0.8, -0.8)


class PerfectMatcher:
    """Points of the views' surfaces at their true places in the query, some of them replaced by chance."""

    def __init__(self, scene, count: int = 60, outliers: float = 0.0, poses: torch.Tensor = OTHERS) -> None:
        self.scene = scene
        self.poses = poses
        self.count = count
        self.outliers = outliers

    def load(self) -> None:
        pass

    def __call__(self, image, views):
        height, width = image.shape[-2:]
        generator = torch.Generator().manual_seed(1)
        seen = TRUTH.resized(width, height)
        matches = []
        for pose in self.poses[: len(views)]:
            output = self.scene.render(seen.with_pose(pose))
            inside = torch.nn.functional.avg_pool2d(output.alpha[None], 5, 1, 2)[0] > 0.99
            rows, columns = inside.nonzero(as_tuple=True)
            chosen = torch.randperm(len(rows), generator=generator)[: self.count]
            pixels = torch.stack([columns[chosen], rows[chosen]], 1) + 0.5
            points = seen.with_pose(pose).unproject(output.depth)[rows[chosen], columns[chosen]]
            in_query = seen.project(points)[0]
            wrong = torch.rand(len(chosen), generator=generator) < self.outliers
            chance = torch.rand(len(chosen), 2, generator=generator) * torch.tensor([width, height])
            matches.append((torch.where(wrong[:, None], chance, in_query), pixels))
        return matches


class GivenBank(ViewBank):
    """A bank that always has the same poses to offer: by default, none from near the query."""

    def __init__(self, given: torch.Tensor = OTHERS) -> None:
        super().__init__()
        self.given = given

    def nearest(self, query, count):
        return self.given[:count], torch.ones(len(self.given[:count]))


def query_of(scene) -> Query:
    output = scene.render(TRUTH, torch.ones(3))
    return Query(output.rgb.permute(2, 0, 1).clamp(0, 1), TRUTH.K)


def stay(scene, query, starts) -> RefinementResult:
    return RefinementResult(starts[0], 1.0, converged=False, n_renders=1)


@pytest.mark.parametrize("size", [48, 96, 150])
def test_a_pose_is_recovered_from_outliers(size):
    scene = make_toy()
    matched = FeatureLocalizer(PerfectMatcher(scene, outliers=0.4), size=size, tolerance=1.0)
    found, *_ = matched(scene, query_of(scene), OTHERS)
    angle, distance = pose_error(found, TRUTH.camera_to_world)
    assert math.degrees(angle) < 0.05
    assert distance < 0.005


def test_the_minority_is_heard_too():
    """Three of five views show a side that looks alike: their matches agree on the pose on the other side."""

    class Lookalike(PerfectMatcher):
        def __call__(self, image, views):
            matches = super().__call__(image, views)
            seen = TRUTH.resized(image.shape[-1], image.shape[-2])
            turn = torch.tensor([-1.0, -1, 1]).diag()  # half a turn about the object's axis
            for index in range(3):
                pose, in_view = OTHERS[index], matches[index][1]
                output = self.scene.render(seen.with_pose(pose))
                points, _ = surface_points(seen.with_pose(pose), output.depth, output.alpha, in_view)
                matches[index] = (seen.project(points @ turn.T)[0], in_view)
            return matches

    scene = make_toy()
    first, second = FeatureLocalizer(Lookalike(scene))(scene, query_of(scene), OTHERS)
    assert math.degrees(pose_error(first, TRUTH.camera_to_world)[0]) > 170
    assert math.degrees(pose_error(second, TRUTH.camera_to_world)[0]) < 0.05


def test_inliers_are_those_that_were_not_disturbed():
    generator = torch.Generator().manual_seed(0)
    points = 0.4 * torch.randn(60, 3, generator=generator)
    pixels, _ = TRUTH.project(points)
    wrong = torch.arange(60) % 5 < 2
    pixels[wrong] += 8 + 20 * torch.rand(24, 2, generator=generator)
    pose, agrees = solve_pnp(points, pixels, TRUTH.K, 1.0)
    assert torch.equal(agrees, ~wrong)
    torch.testing.assert_close(pose, TRUTH.camera_to_world, atol=1e-4, rtol=0)


def test_the_same_seed_gives_the_same_pose():
    scene = make_toy()
    poses = [
        FeatureLocalizer(PerfectMatcher(scene, outliers=0.4), seed=3)(scene, query_of(scene), OTHERS) for _ in range(2)
    ]
    assert torch.equal(*poses)


def test_matches_outside_the_mask_do_not_count():
    scene = make_toy()
    query = query_of(scene)
    empty = Query(query.image, query.K, torch.zeros(72, 96))
    assert not len(FeatureLocalizer(PerfectMatcher(scene))(scene, empty, OTHERS))


def test_a_doubtful_query_is_found_by_its_features():
    scene, query = make_toy(), query_of(make_toy())
    behind = look_at(torch.tensor([[-1.2, 2.5, -1.0], [-1.5, 2.2, -0.5]]), torch.zeros(3), UP)
    lost = PoseEstimator(GaussNewtonRefiner(), starts=1)(scene, GivenBank(behind), query)
    assert math.degrees(pose_error(lost.camera.camera_to_world, TRUTH.camera_to_world)[0]) > 10
    assert lost.confidence < 0.5
    matched = FeatureLocalizer(PerfectMatcher(scene, outliers=0.4, poses=behind))
    found = PoseEstimator(GaussNewtonRefiner(), starts=1, feature_localizer=matched)(scene, GivenBank(behind), query)
    assert math.degrees(pose_error(found.camera.camera_to_world, TRUTH.camera_to_world)[0]) < 0.1
    assert found.confidence > 0.8
    assert found.n_renders > lost.n_renders + 2


def test_a_sure_query_is_not_matched():
    class Refusing(PerfectMatcher):
        def __call__(self, image, views):
            raise AssertionError

    scene = make_toy()
    estimator = PoseEstimator(stay, starts=1, feature_localizer=FeatureLocalizer(Refusing(scene)))
    sure = estimator(scene, GivenBank(TRUTH.camera_to_world[None]), query_of(scene))
    assert sure.confidence > 0.9


def test_too_few_matches_keep_the_estimate():
    scene, query = make_toy(), query_of(make_toy())
    few = FeatureLocalizer(PerfectMatcher(scene, count=1))
    assert not len(few(scene, query, OTHERS))
    before = PoseEstimator(stay, starts=1)(scene, GivenBank(), query)
    after = PoseEstimator(stay, starts=1, feature_localizer=few)(scene, GivenBank(), query)
    assert torch.equal(after.camera.camera_to_world, before.camera.camera_to_world)
    assert after.confidence == before.confidence
    assert after.n_renders == before.n_renders + 3


def test_a_worse_pose_is_not_taken():
    """Matches of another object: the estimate that fits better stays."""
    scene, query = make_toy(), query_of(make_toy())

    class Wrong(PerfectMatcher):
        def __call__(self, image, views):
            return [(in_view.flip(1), in_view) for _, in_view in super().__call__(image, views)]

    estimator = PoseEstimator(stay, starts=1, retry_below=1.1, feature_localizer=FeatureLocalizer(Wrong(scene)))
    found = estimator(scene, GivenBank(TRUTH.camera_to_world[None]), query)
    assert torch.equal(found.camera.camera_to_world, TRUTH.camera_to_world)


def test_points_between_pixels_lie_on_the_surface():
    """A tilted plane: the closed form of the ray's intersection."""
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
    points, known = surface_points(TRUTH, depth, alpha, pixels)
    torch.testing.assert_close(points[known], on_plane(pixels)[known], atol=2e-3, rtol=0)
    assert torch.equal(known, pixels[:, 0] <= 47.5)


def test_pnp_without_agreement_finds_nothing():
    generator = torch.Generator().manual_seed(0)
    points, pixels = torch.randn(20, 3, generator=generator), torch.rand(20, 2, generator=generator) * 90
    for where in ((points, pixels), (points[:5], pixels[:5]), (torch.zeros(8, 3), pixels[:8])):
        pose, agrees = solve_pnp(*where, TRUTH.K, 1.0)
        assert pose is None
        assert not agrees.any()
