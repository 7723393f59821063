# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from anomalib_pose.geometry import Camera, look_at, pose_error, scale_focal_lengths, se3_exp, view_sphere
from anomalib_pose.pose import AdamRefiner, GaussNewtonRefiner, Query
from anomalib_pose.pose.adam import InerfRefiner, ReflectanceRefiner, interest_region
from anomalib_pose.pose.gauss_newton import _Candidate, _without_duplicates
from anomalib_pose.pose.pyramid import central_differences, gaussian_blur_replicated
from anomalib_pose.pose.pyramid_levels import CameraEstimate
from anomalib_pose.pose.surface_alignment import _extended_depth, linearize, rendered_surface
from anomalib_pose.render.reflectance import reflectance
from anomalib_pose.render.spherical_harmonics import C0
from anomalib_pose.scene import GaussianScene, VoxelFitSettings, fit_voxels, sort_by_contribution
from sample_scenes import make_toy, with_reflectance

EYE = torch.tensor([1.2, -2.5, 1.0])
TRUTH = look_at(EYE, torch.zeros(3), torch.tensor([0.0, 0, 1]))
CAMERA = Camera.from_fov(TRUTH, 0.7, 96, 96)


def render_query(scene, *, masked: bool = True) -> Query:
    output = scene.render(CAMERA, torch.ones(3))
    image = output.rgb.permute(2, 0, 1).clamp(0, 1)
    return Query(image, CAMERA.K, (output.alpha > 0.5).float() if masked else None)


def perturbed_pose(degrees: float, fraction: float, seed: int) -> torch.Tensor:
    """Rotate the true camera about the object and shift it by a fraction of its distance."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    shift = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
    moved = se3_exp(torch.cat([torch.zeros(3), math.radians(degrees) * axis])) @ TRUTH
    moved[:3, 3] += fraction * EYE.norm() * shift
    return moved


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("degrees", "fraction"), [(3.0, 0.02), (10.0, 0.05), (15.0, 0.08)])
def test_gauss_newton_recovers_the_true_pose(degrees, fraction, masked):
    scene = make_toy()
    query = render_query(scene, masked=masked)
    for seed in range(3):
        result = GaussNewtonRefiner()(scene, query, perturbed_pose(degrees, fraction, seed)[None])
        angle, distance = pose_error(result.camera_to_world, TRUTH)
        assert math.degrees(angle) < 0.1, (seed, degrees)
        assert distance < 0.005 * EYE.norm()
        assert result.n_renders < 60


def test_coarsest_selects_the_levels(monkeypatch):
    scene = make_toy()
    query, start = render_query(scene), perturbed_pose(0.7, 0.005, 0)[None]
    render, rendered_widths = scene.render, []

    def recording_render(camera, background):
        rendered_widths.append(camera.width)
        return render(camera, background)

    monkeypatch.setattr(scene, "render", recording_render)
    for coarsest, widths in ((4, {24, 48, 96}), (2, {48, 96}), (1, {96})):
        rendered_widths.clear()
        result = GaussNewtonRefiner(coarsest=coarsest)(scene, query, start)
        assert set(rendered_widths) == widths
        assert math.degrees(pose_error(result.camera_to_world, TRUTH)[0]) < 0.1


def test_gauss_newton_renders_a_reduced_scene_once_the_gaussians_are_sorted():
    """Coarse levels render fewer Gaussians than fine ones, and no level renders all of them."""
    scene = make_toy()
    query = render_query(scene)
    refiner = GaussNewtonRefiner(coarsest=4)
    assert {len(level.scene) for level in refiner._levels(scene, query)} == {1500}
    sort_by_contribution(scene, Camera.from_fov(view_sphere(12, 3.0, 1.2, -1.2), 0.7, 60, 48))
    small, large = scene.counts.tolist()
    assert [len(level.scene) for level in refiner._levels(scene, query)] == [small, large, large]
    result = refiner(scene, query, perturbed_pose(3.0, 0.02, 0)[None])
    assert math.degrees(pose_error(result.camera_to_world, TRUTH)[0]) < 0.1


def test_candidates_of_nearly_the_lowest_cost_survive():
    """Images of a few pixels do not distinguish look-alike sides."""
    candidates = [_Candidate(CameraEstimate(torch.eye(4)), cost, converged=True) for cost in (2.0, 1.0, 1.1, 1.3)]
    for survivors, costs in ((1, [1.0, 1.1]), (2, [1.0, 1.1]), (3, [1.0, 1.1, 1.3]), (9, [1.0, 1.1, 1.3, 2.0])):
        selected = GaussNewtonRefiner(survivors=survivors)._select_survivors(candidates)
        assert [candidate.cost for candidate in selected] == costs


def test_fine_levels_choose_the_right_one_of_two_look_alike_sides(monkeypatch):
    """On the coarse levels the wrong side has the lower cost."""
    scene, query = make_toy(), render_query(make_toy())
    near_truth, opposite = perturbed_pose(2.0, 0.01, 0), TRUTH @ torch.diag(torch.tensor([-1.0, 1, -1, 1]))
    refine_on_level = GaussNewtonRefiner._refine_on_level

    def refine_with_misleading_cost(self, level, camera):
        camera, cost, converged = refine_on_level(self, level, camera)
        is_opposite = pose_error(camera.camera_to_world, TRUTH)[0] > 1
        return _Candidate(camera, (0.95 if is_opposite else 1.0) if level.camera.width < 96 else cost, converged)

    monkeypatch.setattr(GaussNewtonRefiner, "_refine_on_level", refine_with_misleading_cost)
    result = GaussNewtonRefiner(coarsest=4)(scene, query, torch.stack([opposite, near_truth]))
    assert math.degrees(pose_error(result.camera_to_world, TRUTH)[0]) < 0.1


def test_gauss_newton_ignores_a_defect():
    """A colored patch covers a fifth of the object. Robust weights limit its influence on the pose."""
    scene = make_toy()
    query = render_query(scene)
    image = query.image.clone()
    image[:, 40:56, 40:56] = torch.tensor([0.9, 0.1, 0.9])[:, None, None]
    result = GaussNewtonRefiner()(scene, Query(image, query.K, query.foreground), perturbed_pose(8, 0.04, 1)[None])
    angle, _ = pose_error(result.camera_to_world, TRUTH)
    assert math.degrees(angle) < 0.5


def test_redescending_weights_reject_a_missing_part():
    """A quarter of the object is missing. Bounded weights let it move the pose, redescending weights do not."""
    scene = make_toy()
    query = render_query(scene)
    image, foreground = query.image.clone(), query.foreground.clone()
    image[:, :, :35], foreground[:, :35] = 1.0, 0.0  # the object lies in the columns 22 to 75
    incomplete_query = Query(image, query.K, foreground)
    start = perturbed_pose(2, 0.01, 3)[None]
    errors = [
        math.degrees(pose_error(refiner(scene, incomplete_query, start).camera_to_world, TRUTH)[0])
        for refiner in (GaussNewtonRefiner(), GaussNewtonRefiner(redescending=True, iterations=12))
    ]
    assert errors[1] < 0.3
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_refine_focal_corrects_a_wrong_focal_length(factor):
    """The query's K is off by three percent. Without the focal factor the camera's distance compensates for it."""
    scene, query = make_toy(), render_query(make_toy())
    wrong_query = Query(query.image, scale_focal_lengths(query.K, factor), query.foreground)
    start = perturbed_pose(5, 0.02, 4)[None]
    result = GaussNewtonRefiner(iterations=20, refine_focal=True)(scene, wrong_query, start)
    assert result.focal_scale == pytest.approx(1 / factor, abs=0.003)
    angle, distance = pose_error(result.camera_to_world, TRUTH)
    assert math.degrees(angle) < 0.1
    assert distance < 0.004 * EYE.norm()
    fixed_focal = GaussNewtonRefiner(iterations=20)(scene, wrong_query, start)
    assert fixed_focal.focal_scale == 1
    assert pose_error(fixed_focal.camera_to_world, TRUTH)[1] > 0.02 * EYE.norm()


def test_focal_gradient_is_the_finite_difference():
    """The rendering and the query differ little."""
    scene, query = make_toy(), render_query(make_toy())
    refiner = GaussNewtonRefiner(refine_focal=True, robust_scale=10.0)  # least squares
    level = refiner._levels(scene, query)[-1]

    def cost(log_focal: float) -> float:
        return refiner._render(level, CameraEstimate(TRUTH, log_focal)).cost * level.image.numel()

    rendering = refiner._render(level, CameraEstimate(TRUTH, 0.004))
    intrinsics = level.intrinsics(rendering.camera)
    surface = rendered_surface(rendering.rgb, rendering.depth, rendering.alpha, intrinsics)
    gradient = refiner._linearize(level, rendering, surface, torch.eye(4)).gradient
    assert float(gradient[6]) == pytest.approx((cost(0.0045) - cost(0.0035)) / 0.001, rel=0.1)


def test_the_better_of_two_initial_poses_wins():
    scene = make_toy()
    opposite = look_at(-EYE, torch.zeros(3), torch.tensor([0.0, 0, 1]))
    result = GaussNewtonRefiner()(scene, render_query(scene), torch.stack([opposite, perturbed_pose(8, 0.04, 2)]))
    assert math.degrees(pose_error(result.camera_to_world, TRUTH)[0]) < 0.1


def test_candidates_that_converge_to_one_pose_continue_as_one(monkeypatch):
    scene = make_toy()
    query, render, rendered_widths = render_query(scene), scene.render, []

    def recording_render(camera, background):
        rendered_widths.append(camera.width)
        return render(camera, background)

    monkeypatch.setattr(scene, "render", recording_render)
    initial_poses = torch.stack([perturbed_pose(4, 0.02, seed) for seed in range(3)])
    fine_renders = {}
    for count in (1, 3):
        rendered_widths.clear()
        result = GaussNewtonRefiner(coarse_levels=3, survivors=3)(scene, query, initial_poses[:count])
        assert math.degrees(pose_error(result.camera_to_world, TRUTH)[0]) < 0.1
        assert result.n_renders == len(rendered_widths)
        fine_renders[count] = sum(width == 96 for width in rendered_widths)
    assert fine_renders[3] <= fine_renders[1] + 1  # all three converge to one pose on the coarsest level


def test_duplicates_are_recognized_by_angle_and_by_distance():
    far = TRUTH.clone()
    far[:3, 3] *= 1.1
    rotated, near = perturbed_pose(6, 0.0, 0), perturbed_pose(1, 0.01, 0)
    costs = ((near, 0.3), (TRUTH, 0.2), (far, 0.4), (rotated, 0.1))
    candidates = [_Candidate(CameraEstimate(pose), cost, converged=True) for pose, cost in costs]
    assert [candidate.cost for candidate in _without_duplicates(candidates)] == [0.1, 0.2, 0.4]


def test_adam_recovers_the_true_pose():
    scene = make_toy()
    start = perturbed_pose(5, 0.02, 0)
    result = AdamRefiner(steps=120)(scene, render_query(scene), start[None])
    before, after = pose_error(start, TRUTH)[0], pose_error(result.camera_to_world, TRUTH)[0]
    assert math.degrees(after) < 0.5
    assert after < before / 5
    rotation = result.camera_to_world[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [False, True])
def test_reflectance_refiner_recovers_the_true_pose_in_half_the_light(channels):
    """The loss uses the reflectance alone, computed from renderings or rendered by the scene."""
    scene = make_toy()
    query = render_query(scene)
    dim = Query(query.image * (1 - 0.5 * query.foreground), query.K, query.foreground)
    if channels:
        colors = (0.5 + C0 * scene.sh[:, 0]).clamp(0, 1)
        coefficients = (reflectance(colors[..., None, None])[..., 0, 0] - 0.5) / C0
        reflective_scene = GaussianScene(scene.sh_degree, "cpu")
        # The colors are wrong on purpose.
        reflective_scene.set_raw(scene.raw | {"sh": torch.cat([scene.sh.flip(0), coefficients[:, None]], 2)})
        scene = reflective_scene
    start = perturbed_pose(5, 0.02, 0)
    result = ReflectanceRefiner(steps=120, rate=0.01, reflectance_share=1.0)(scene, dim, start[None])
    assert math.degrees(pose_error(result.camera_to_world, TRUTH)[0]) < 0.5
    assert result.cost < 0.01
    if channels:
        random = ReflectanceRefiner(steps=1, reflectance_share=1.0)(with_reflectance(make_toy()), dim, TRUTH[None])
        assert random.cost > 5 * result.cost


@pytest.mark.slow
def test_inerf_recovers_the_true_pose():
    toy = make_toy()
    cameras = Camera.from_fov(view_sphere(40, 3.0), 0.6, 64, 64)
    output = toy.render(cameras, torch.ones(3))
    images, masks = output.rgb.permute(0, 3, 1, 2).clamp(0, 1), (output.alpha > 0.01).float()
    scene, _ = fit_voxels(images, cameras, masks, VoxelFitSettings(steps=300, rays=2048), progress=False)
    start = perturbed_pose(5.0, 0.01, 0)
    result = InerfRefiner(steps=120, rays=300)(scene, render_query(toy), start[None])
    before, after = (math.degrees(pose_error(pose, TRUTH)[0]) for pose in (start, result.camera_to_world))
    assert after < 1.3 < 4 < before
    assert result.n_renders == 120


def test_inerf_needs_single_pixels():
    with pytest.raises(TypeError, match="renders single rays"):
        InerfRefiner(steps=1)(make_toy(), render_query(make_toy()), TRUTH[None])


def test_interest_region_lies_around_key_points():
    image = torch.ones(3, 80, 80)
    image[:, 30:38, 50:58] = 0.0
    region = interest_region(Query(image, CAMERA.K))
    rows, columns = region // 80, region % 80
    assert 0 < len(region) < 80 * 80 / 4
    assert bool(((rows - 34).abs().maximum((columns - 54).abs()) < 20).all())
    plain = Query(torch.ones(3, 10, 10), CAMERA.K, torch.eye(10))
    assert interest_region(plain).tolist() == [11 * index for index in range(10)]
    assert len(interest_region(Query(torch.ones(3, 10, 10), CAMERA.K))) == 100


def least_squares(residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return residual.square() / 2, torch.ones_like(residual)


def test_gradient_of_the_cost_is_the_finite_difference():
    """This also holds for a surface that has already moved."""
    scene, query = make_toy(), render_query(make_toy())
    output = scene.render(CAMERA.with_pose(perturbed_pose(1, 0.01, 5)), torch.ones(3))
    blurred = (gaussian_blur_replicated(image, 2.0) for image in (output.rgb.permute(2, 0, 1), query.image))
    rgb, image = (image.double() for image in blurred)
    K = CAMERA.K.double()
    maps = torch.cat([image, *central_differences(image)])
    surface = rendered_surface(rgb, output.depth.double(), output.alpha.double(), K)
    for moved in (torch.zeros(6).double(), torch.tensor([0.01, -0.02, 0.01, 0.004, -0.003, 0.01]).double()):
        motion = se3_exp(moved)
        gradient = linearize(surface, maps, K, motion, least_squares).gradient
        differences = torch.stack([
            torch.tensor((cost(surface, maps, K, step, motion) - cost(surface, maps, K, -step, motion)) / 2e-4)
            for step in 1e-4 * torch.eye(6).double()
        ])  # fmt: skip
        # The slope is the mean of both images' slopes, so it is exact only where the images are equal.
        assert torch.nn.functional.cosine_similarity(gradient, differences, dim=0) > 0.97
        assert 0.85 < gradient.norm() / differences.norm() < 1.15


def cost(surface, maps, K, step, motion) -> float:
    system = linearize(surface, maps, K, se3_exp(step) @ motion, least_squares)
    return system.cost * surface.colors.numel()


def test_shift_is_the_distance_of_the_projected_points():
    output = make_toy().render(CAMERA, torch.ones(3))
    rgb = output.rgb.permute(2, 0, 1)
    surface = rendered_surface(rgb, output.depth, output.alpha, CAMERA.K)
    maps = torch.cat([rgb, *central_differences(rgb)])
    still = linearize(surface, maps, CAMERA.K, torch.eye(4), least_squares)
    assert still.cost < 1e-10
    assert still.shift < 1e-4
    motion = se3_exp(torch.tensor([0.02, 0.01, -0.03, 0.01, 0.02, -0.01]))
    world = CAMERA.camera_to_world[:3, :3] @ surface.points + CAMERA.camera_to_world[:3, 3:]
    projected, _ = CAMERA.with_pose(CAMERA.camera_to_world @ motion.inverse()).project(world.T)
    expected = (projected - surface.pixel_centers.T).norm(dim=1).mean()
    assert linearize(surface, maps, CAMERA.K, motion, least_squares).shift == pytest.approx(float(expected), rel=1e-4)


def test_several_steps_reuse_one_rendering():
    scene = make_toy()
    query, start = render_query(scene), perturbed_pose(10.0, 0.05, 1)[None]
    one, several = (GaussNewtonRefiner(steps_a_render=steps)(scene, query, start) for steps in (1, 8))
    for result in (one, several):
        assert math.degrees(pose_error(result.camera_to_world, TRUTH)[0]) < 0.1
    assert several.n_renders < 0.6 * one.n_renders


def test_an_empty_rendering_has_no_surface():
    assert rendered_surface(torch.ones(3, 8, 8), torch.zeros(8, 8), torch.zeros(8, 8), CAMERA.K) is None


def test_surface_reaches_two_pixels_beyond_the_silhouette():
    depth, alpha = torch.zeros(9, 9), torch.zeros(9, 9)
    depth[4, 4], alpha[4, 4] = 3.0, 1.0
    z, pixels = _extended_depth(depth, alpha)
    assert pixels.sum() == 25
    assert (z[2:7, 2:7] == 3).all()


def test_blur_equals_scipys_and_differences_are_central():
    from scipy import ndimage

    image = torch.rand(3, 20, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(image.numpy(), (0, 1.5, 1.5), mode="nearest", truncate=3.0)
    torch.testing.assert_close(gaussian_blur_replicated(image, 1.5), torch.from_numpy(expected), atol=1e-12, rtol=0)
    along_x, along_y = central_differences(image)
    torch.testing.assert_close(along_x[:, 5, 7], (image[:, 5, 8] - image[:, 5, 6]) / 2)
    torch.testing.assert_close(along_y[:, 5, 7], (image[:, 6, 7] - image[:, 4, 7]) / 2)
