# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from anomalib_pose.compare import CalibratedComparator, ReferenceComparison, WindowSettings, make_comparator
from anomalib_pose.compare.lighting.shading import surface_normals
from anomalib_pose.compare.reference import Reference, stack_references
from anomalib_pose.geometry import Camera, pose_error, view_sphere
from anomalib_pose.models.components import SceneDetector
from anomalib_pose.pose import make_estimator
from anomalib_pose.render.reflectance import reflectance
from sample_scenes import make_toy, with_reflectance

SIZE = 64
CAMERA = Camera.from_fov(torch.eye(4), 0.7, SIZE, SIZE)
POSES = view_sphere(24, 3.0, 1.0, -0.2)
CAMERAS = CAMERA.with_pose(POSES)


def make_detector(surface_views: int) -> SceneDetector:
    comparison = ReferenceComparison(CalibratedComparator(window=WindowSettings(64)), surface_views=surface_views)
    return SceneDetector(make_toy(), make_estimator(), comparison)


def calibrate_surface(detector: SceneDetector, images: torch.Tensor) -> None:
    detector.comparison.calibrate_surface(
        images, lambda index: detector.render_reference(CAMERAS[index]), detector.rendered
    )


def photographs(detector: SceneDetector, place: torch.Tensor) -> torch.Tensor:
    """Render all views with a green spot where the surface is near a place."""
    images = []
    for index in range(len(POSES)):
        image, alpha, points, *_ = detector.render_reference(CAMERAS[index])
        spot = ((points - place).norm(dim=-1) < 0.25) & (alpha > 0.8)
        images.append(torch.where(spot, torch.tensor([0.1, 0.9, 0.1])[:, None, None], image))
    return torch.stack(images)


def test_residuals_of_all_training_views_are_divided_out() -> None:
    detector = make_detector(24)
    image, alpha, points, *_ = detector.render_reference(CAMERAS[3])
    marked_place, new_place = (points[row, column] for row, column in ((26, 26), (38, 38)))
    calibrate_surface(detector, photographs(detector, marked_place))
    both_marked = photographs(detector, marked_place)[3]
    both_marked = torch.where(
        (photographs(detector, new_place)[3] != image).any(0), photographs(detector, new_place)[3], both_marked
    )
    anomaly_map = detector.comparison.comparator(both_marked[None], image[None], alpha[None])
    corrected = detector.comparison.surface(anomaly_map, points[None], alpha[None])[0] / anomaly_map[0].clamp(min=1e-6)
    assert corrected[26, 26] < 0.5
    assert corrected[38, 38] > 0.9


def test_unsupported_regions_lower_the_score_and_not_the_map() -> None:
    comparison = ReferenceComparison(CalibratedComparator(window=WindowSettings(64)))
    detector = SceneDetector(make_toy(), make_estimator(), comparison, nearby_views=3)
    images = torch.stack([detector.rendered.render(camera, torch.ones(3)).rgb.permute(2, 0, 1) for camera in CAMERAS])
    detector.nearby.store_residuals(detector.rendered, images.clamp(0, 1), CAMERAS, keep_photographs=True)
    camera = CAMERA.with_pose(view_sphere(3, 3.0, 1.0, -0.2, azimuth_offset=0.1)[1])
    reference = stack_references([detector.render_reference(camera)])
    query = reference.rgb.clone()
    query[0, :, 30:34, 30:34] = torch.tensor([0.1, 0.9, 0.1])[:, None, None]
    floating = torch.zeros_like(reference.support_residual)
    floating[0, 28:36, 28:36] = 0.5
    maps, scores = zip(
        *(
            comparison.compare(query, reference._replace(support_residual=residual))
            for residual in (reference.support_residual, floating)
        ),
        strict=True,
    )
    assert reference.support_residual[reference.alpha > 0.9].median() < 0.05
    assert torch.equal(*maps)
    assert scores[1] < 0.6 * scores[0]
    detector.nearby.photographs = detector.nearby.photographs[:0]
    without = stack_references([detector.render_reference(camera)])
    assert without.support_residual is None
    assert comparison.compare(query, without)[1] > scores[0]


@pytest.mark.parametrize(("step", "always", "asked"), [(1, False, False), (1, True, True), (3, False, True)])
def test_support_is_checked_for_sparse_views(step: int, always: bool, asked: bool) -> None:
    cameras = CAMERA.with_pose(view_sphere(120, 3.0, 1.0, -0.2)[:24:step])
    comparison = ReferenceComparison(CalibratedComparator(window=WindowSettings(64)))
    detector = SceneDetector(make_toy(), make_estimator(), comparison, nearby_views=3, check_support=always)
    images = torch.stack([detector.rendered.render(camera, torch.ones(3)).rgb.permute(2, 0, 1) for camera in cameras])
    detector.fit(images.clamp(0, 1), cameras, None, lambda *_: 30.0)
    assert detector.nearby.has_photographs is asked
    assert 0 < int(detector.scene.counts[0]) < int(detector.scene.counts[1]) < len(detector.scene)
    fresh_comparison = ReferenceComparison(CalibratedComparator(window=WindowSettings(64)))
    fresh = SceneDetector(make_toy(), make_estimator(), fresh_comparison, nearby_views=3)
    fresh.load_state_dict(detector.state_dict())
    assert fresh.nearby.has_photographs is asked


def test_no_surface_views_leave_the_statistics_empty() -> None:
    detector = make_detector(0)
    calibrate_surface(detector, photographs(detector, torch.zeros(3)))
    assert not detector.comparison.surface.excess_square.any()
    with pytest.raises(ValueError, match="surface_views"):
        make_detector(-1)


def test_a_transparent_scene_is_reported(caplog) -> None:
    detector = make_detector(8)
    detector.scene.set_raw({**detector.scene.raw, "logit_opacities": torch.full((1500,), -9.0)})
    calibrate_surface(detector, torch.ones(24, 3, SIZE, SIZE))
    assert "transparent in all 8 views" in caplog.text
    assert not detector.comparison.surface.fitted


LAMP, LAMP_COLOR = torch.tensor([0.8, -0.6, 0.0]), torch.tensor([1.0, 0.75, 0.5])


@pytest.fixture
def detectors() -> list[SceneDetector]:
    """One detector without relighting and one with."""
    made = []
    for relight in (False, True):
        comparison = ReferenceComparison(CalibratedComparator(window=WindowSettings(64)), relight=relight)
        detector = SceneDetector(make_toy(), make_estimator(), comparison)
        detector.white_background = torch.tensor(data=True)
        detector.bank.build(detector.rendered, CAMERAS)
        made.append(detector)
    return made


def under_the_lamp(detector: SceneDetector, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Render photograph and opacity of the object in another light."""
    image, alpha, points, *_ = detector.render_reference(CAMERA.with_pose(pose))
    shade = (0.55 + 0.45 * surface_normals(points[None], alpha[None])[0] @ LAMP) * LAMP_COLOR[:, None, None]
    return torch.lerp(image, image * shade, alpha), alpha


def test_relighting_lowers_the_map_under_another_lamp(detectors) -> None:
    means = []
    for detector in detectors:
        lit, alpha = under_the_lamp(detector, view_sphere(7, 3.0, 0.9, -0.1)[3])
        means.append(detector(lit[None], CAMERA.K[None]).anomaly_map[0, 0][alpha > 0.5].mean())
    plain, relit = means
    assert relit < 0.6 * plain, means


def test_relighting_lowers_pose_errors_under_another_lamp(detectors) -> None:
    errors = []
    for detector in detectors:
        for truth in view_sphere(7, 3.0, 0.9, -0.1):
            lit, _ = under_the_lamp(detector, truth)
            estimate, query = detector.estimate(lit, CAMERA.K)
            assert query.image.shape == lit.shape
            errors.append(pose_error(estimate.camera.camera_to_world.double(), truth.double())[0])
    before, after = torch.rad2deg(torch.stack(errors)).unflatten(0, (2, -1))
    assert after.max() < 0.7 * before.max(), (before, after)
    assert after.median() < 0.7 * before.median(), (before, after)


def test_comparison_uses_the_fitted_reflectance() -> None:
    scene = with_reflectance(make_toy())
    comparator = make_comparator("illumination", window=WindowSettings(64))
    detector = SceneDetector(scene, make_estimator(), ReferenceComparison(comparator))
    reference = stack_references([detector.render_reference(CAMERAS[3])])
    background = reflectance(torch.ones(1, 3, 1, 1), comparator.reflectance.offset).flatten()
    rendering = scene.render_reflectance(CAMERAS[3], background)
    torch.testing.assert_close(reference.reflectance[0], rendering.rgb.permute(2, 0, 1).clamp(0, 1))
    residual_map = detector.comparison.residual_map(reference.rgb, reference)
    expected = comparator(reference.rgb, reference.rgb, reference.alpha, reference.reflectance)
    torch.testing.assert_close(residual_map, expected, rtol=0, atol=0)
    without = detector.comparison.residual_map(reference.rgb, reference._replace(reflectance=None))
    assert residual_map.amax() > without.amax()
    for without_reflectance in (
        SceneDetector(scene, make_estimator(), ReferenceComparison(comparator, relight=True)),
        SceneDetector(make_toy(), make_estimator(), ReferenceComparison(comparator)),
        SceneDetector(scene, make_estimator(), ReferenceComparison(CalibratedComparator(window=WindowSettings(64)))),
    ):
        assert without_reflectance.render_reference(CAMERAS[3]).reflectance is None


def test_reference_over_the_background_of_a_query() -> None:
    alpha = torch.tensor([[0.0, 1.0, 0.25]])
    rgb, photograph = torch.rand(2, 3, 1, 3, generator=torch.Generator().manual_seed(0)).unbind()
    over_white = alpha * rgb + 1 - alpha
    white = reflectance(torch.ones(1, 3, 1, 3))[0]
    color = reflectance(rgb[None])[0]
    reference = Reference(over_white, alpha, torch.zeros(1, 3, 3), reflectance=alpha * color + (1 - alpha) * white)
    composed = reference.over_background(photograph, reflectance)
    torch.testing.assert_close(composed.rgb, alpha * rgb + (1 - alpha) * photograph)
    expected = alpha * color + (1 - alpha) * reflectance(photograph[None])[0]
    torch.testing.assert_close(composed.reflectance, expected)
    assert reference._replace(reflectance=None).over_background(photograph, reflectance).reflectance is None
