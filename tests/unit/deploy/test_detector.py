# SPDX-License-Identifier: Apache-2.0
import copy
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from anomalib_pose.compare import CalibratedComparator, SurfaceStatistics
from anomalib_pose.compare.maps import largest_around
from anomalib_pose.compare.synthetic_defects import add_synthetic_defects
from anomalib_pose.deploy import DetectorSettings, FeedForwardDetector, build_detector
from anomalib_pose.deploy.build import find_window
from anomalib_pose.deploy.graph.alignment import DepthViews, align, build_level, project, retract, unproject
from anomalib_pose.deploy.graph.packed_views import pack_view
from anomalib_pose.deploy.graph.rendered_bank import RenderedBank, spread_poses
from anomalib_pose.deploy.graph.resample import frame_matrix, pooling_matrix, sample, softening_matrix, window_matrix
from anomalib_pose.deploy.graph.view_synthesis import synthesize_views
from anomalib_pose.deploy.graph.window import Window
from anomalib_pose.deploy.settings import bank_megabytes, check_size
from anomalib_pose.geometry import Camera, pose_error, rigid_inverse, so3_exp, view_sphere
from sample_scenes import make_toy

SIZE = 96
CAMERA = Camera.from_fov(torch.eye(4), 0.7, SIZE, SIZE)
POSES = view_sphere(60, 3.0, 1.2, -1.2)
QUERIES = view_sphere(7, 3.02, 1.0, -1.0, azimuth_offset=0.3)


@pytest.fixture(scope="module")
def detector() -> FeedForwardDetector:
    settings = DetectorSettings(views=150, size=SIZE)
    return build_detector(make_toy(), POSES, CAMERA, CalibratedComparator(), settings, white_background=True)


def photograph(pose: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    output = make_toy().render(CAMERA.resized(size, size).with_pose(pose), torch.ones(3))
    return output.rgb.permute(2, 0, 1).clamp(0, 1)


def test_window_matrix_is_the_antialiased_resize():
    image = torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(0))
    rows, columns = window_matrix(90, 32, 0, 1, image), window_matrix(70, 80, 0, 1, image)
    expected = torch.nn.functional.interpolate(image, (32, 80), mode="bilinear", antialias=True)
    torch.testing.assert_close(rows @ image @ columns.T, expected, atol=1e-5, rtol=0)


def test_window_matrix_crops_a_window():
    image = torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(window_matrix(40, 10, 0.25, 0.25, image) @ image, image[10:20])


def test_frame_matrix_pastes_a_window():
    cells = torch.rand(10, 1, generator=torch.Generator().manual_seed(0))
    frame = frame_matrix(40, 10, 0.25, 0.25, cells) @ cells
    torch.testing.assert_close(frame[10:20], cells)
    assert not frame[:10].any()
    assert not frame[20:].any()


def test_softening_is_a_resize_to_the_image_and_back():
    cells = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    rows, columns = softening_matrix(20, 32, 0, 1, cells), softening_matrix(26, 40, 0, 1, cells)
    small = torch.nn.functional.interpolate(cells, (20, 26), mode="bilinear", antialias=True)
    expected = torch.nn.functional.interpolate(small, (32, 40), mode="bilinear")
    softened = rows @ cells @ columns.T
    inner = (..., slice(2, -2), slice(2, -2))  # at the border the matrix normalizes the weights otherwise
    torch.testing.assert_close(softened[inner], expected[inner], atol=1e-5, rtol=0)


def test_a_softened_window_agrees_with_the_softened_image_and_large_images_are_not_softened():
    image = torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    # away from the window's border, pixels and cells of window and image coincide
    whole, part = (
        softening_matrix(40, 64, 0, 1, image) @ image,
        softening_matrix(40, 32, 0.25, 0.5, image) @ image[16:48],
    )
    torch.testing.assert_close(part[3:-3], whole[19:45], atol=1e-5, rtol=0)
    assert torch.equal(softening_matrix(64, 64, 0, 1, image), torch.eye(64))
    assert torch.equal(softening_matrix(90, 32, 0.2, 0.5, image), torch.eye(32))


def test_largest_around_is_the_maximum_of_the_square():
    image = torch.randn(2, 11, 13, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), value=-torch.inf)
    assert torch.equal(largest_around(image, 5), padded.unfold(1, 5, 1).unfold(2, 5, 1).amax((3, 4)))


def test_pooling_matrix_is_the_mean_of_areas():
    image = torch.rand(1, 1, 50, 30)
    pooled = pooling_matrix(50, 25) @ image @ pooling_matrix(30, 10).T
    torch.testing.assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(image, (25, 10)))
    torch.testing.assert_close(pooling_matrix(7, 3).sum(1), torch.ones(3))


def test_retraction_rotates_exactly():
    tangent = 0.25 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    moved = retract(tangent)
    torch.testing.assert_close(moved[:, :3, :3], so3_exp(tangent[:, 3:]), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved[:, :3, 3], tangent[:, :3])


def window_camera(detector: FeedForwardDetector) -> Camera:
    """Camera of the detector's window, at the origin."""
    fx, fy, cx, cy = detector.bank.pinhole(torch.tensor([0]))[0].tolist()
    return Camera(torch.eye(4), torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), *reversed(detector.size))


@pytest.mark.parametrize("pixels", [SIZE, 3 * SIZE])
def test_views_are_cropped_from_photographs_and_survive_the_packing(pixels):
    """Rendered at the window's size, Gaussians would be blurred by more of the object, which would look larger."""
    camera, settings = CAMERA.resized(pixels, pixels), DetectorSettings(views=12, size=SIZE, drawn=False)
    detector = build_detector(make_toy(), POSES, camera, CalibratedComparator(), settings, white_background=True)
    bank = detector.bank
    index = torch.tensor([3, 7])
    pose = bank.pose(index)
    pose[:, :3, 3] *= bank.unit
    output = make_toy().render(camera.with_pose(pose), torch.ones(3))
    rgb = detector.crop(output.rgb.permute(0, 3, 1, 2).clamp(0, 1))
    alpha, weighted = (
        detector.crop(part[:, None].expand(-1, 3, -1, -1))[:, 0] for part in (output.alpha, output.alpha * output.depth)
    )
    depth = weighted / alpha.clamp(min=1e-6)
    view = bank.view(index)
    torch.testing.assert_close(view.rgb, rgb, atol=5e-3, rtol=0)
    opaque = alpha > 0.5
    decided = (alpha - 0.5).abs() > 1e-4  # closer to one half, the last digit of the processor decides
    assert decided.float().mean() > 0.999
    assert torch.equal((view.alpha > 0)[decided], opaque[decided])
    deepest = largest_around(torch.where(opaque, depth, 0), 3)
    smooth = opaque & (deepest + largest_around(torch.where(opaque, -depth, -9), 3) < 0.02 * depth)
    assert smooth.float().sum() > 0.5 * opaque.sum()
    assert ((view.depth * bank.unit - depth)[smooth].abs() < 0.02).float().mean() > 0.99


def test_a_pixel_of_half_opacity_is_packed_alike_on_all_processors():
    alpha = torch.full((8, 8), 0.5) + torch.linspace(-3e-6, 3e-6, 64).view(8, 8)
    alpha[0], alpha[7] = 0.5 - 1e-4, 0.5 + 1e-4
    packed, _ = pack_view(torch.rand(8, 8, 3), torch.ones(8, 8), alpha)
    silhouette = packed[3] % 2
    assert not silhouette[:7].any()
    assert silhouette[7].all()


def test_a_flipped_pixel_of_a_silhouette_hardly_changes_a_score():
    settings = DetectorSettings(views=12, size=SIZE, drawn=False)
    detector = build_detector(make_toy(), POSES, CAMERA, CalibratedComparator(), settings, white_background=False)
    image = photograph(QUERIES[0])[None]
    image[:, :, 44:52, 44:52] = torch.tensor([0.1, 0.9, 0.1])[:, None, None]
    expected = detector(image)
    silhouettes = detector.bank.views[:, 3] % 2
    edges = (largest_around(silhouettes.float(), 3) > 0) & (silhouettes == 0)
    for index in range(len(edges)):
        row, column = edges[index].nonzero()[index]
        detector.bank.views[index, 3, row, column] ^= 1
    changed = detector(image)
    torch.testing.assert_close(changed.pred_score, expected.pred_score, rtol=2e-3, atol=0)
    assert (changed.anomaly_map - expected.anomaly_map).abs().mean() < 0.02 * expected.anomaly_map.mean()


@pytest.mark.parametrize("size", [SIZE, 70])
def test_the_window_does_not_jump_where_an_opacity_passes_its_limit(size):
    class Disc:
        def __init__(self, rim: float) -> None:
            self.rim = rim

        def render(self, camera: Camera) -> SimpleNamespace:
            alpha = torch.zeros(1, camera.height, camera.width)
            alpha[:, 20:40, 20:40] = 1
            alpha[:, 30, 41:44] = self.rim
            return SimpleNamespace(alpha=alpha)

    camera = CAMERA.resized(size, size)
    rims = torch.linspace(0.099, 0.101, 2001).tolist()
    ends = [sum(find_window(Disc(rim), POSES[:1], camera)[::2]) for rim in rims]
    assert ends[-1] - ends[0] > 3.9 / 64
    assert max(abs(after - before) for before, after in pairwise(ends)) < 0.01 / 64


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


def test_alignment_lowers_the_cost_of_a_wrong_initial_view(detector):
    bank = detector.bank
    query = detector.crop(photograph(POSES[5])[None])
    index = bank.nearest(query, 3)[:, 1]
    level = build_level(query, bank.view(index), bank.pinhole(index), torch.eye(4)[None], 2, silhouettes_only=False)
    costs = [float(align(level, torch.eye(4)[None], steps)[1]) for steps in (0, 2, 8)]
    assert costs[0] > costs[1] >= costs[2]


def test_slopes_are_the_derivatives_of_the_residual(detector):
    bank, index = detector.bank, torch.tensor([10])
    view, pinhole, identity = bank.view(index), bank.pinhole(index), torch.eye(4)[None]
    smooth = view._replace(rgb=torch.nn.functional.avg_pool2d(view.rgb, 9, 1, 4, count_include_pad=False))
    level = build_level(smooth.rgb, smooth, pinhole, identity, 1, silhouettes_only=False)
    for axis in range(6):
        tangent = 4e-3 * torch.eye(6)[axis][None]
        images = [
            sample(level.query, project(retract(sign * tangent), level.points, pinhole)[1][:, :, None])
            for sign in (1, -1)
        ]
        change = ((images[0] - images[1]) / 8e-3).flatten()
        slope = level.jacobian[0, axis]
        assert (change - slope).norm() < 0.05 * slope.norm()
    products = torch.einsum("ian,ibn->iab", *2 * [level.jacobian.unflatten(2, (3, -1)).transpose(1, 2).flatten(0, 1)])
    torch.testing.assert_close(level.products.sum(2).view(6, 6), products.sum(0), rtol=1e-3, atol=1e-3)


def test_initial_views_are_far_apart(detector):
    query = detector.crop(torch.stack([photograph(pose) for pose in QUERIES]))
    index = detector.bank.nearest(query, 4)
    for row in index:
        cosine = detector.bank.directions[row] @ detector.bank.directions[row].T
        assert (torch.rad2deg(cosine.clamp(-1, 1).acos()) + 999 * torch.eye(4)).min() > 12


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


def test_projection_of_the_identity_is_the_pixel_itself():
    depth, pinhole = 1 + torch.rand(2, 5, 7), torch.tensor([[9.0, 8, 3, 2]]).expand(2, 4)
    _, uv = project(torch.eye(4).expand(2, 4, 4), unproject(depth, pinhole).flatten(2), pinhole)
    torch.testing.assert_close(uv.unflatten(2, (5, 7))[0, :, 2, 3], torch.tensor([3.5, 2.5]))


def test_pixels_beyond_the_frames_of_all_views_have_no_support():
    plane = DepthViews(torch.full((1, 3, 20, 30), 0.4), torch.ones(1, 20, 30), torch.ones(1, 20, 30))
    pinhole = torch.tensor([[30.0, 30, 15, 10]])
    motion = torch.eye(4)[None].clone()
    motion[:, 0, 3] = 4 / 30  # moves the plane's image four pixels to the right; no view shows what is on the left
    rendering = synthesize_views(plane, motion, rigid_inverse(motion), pinhole, 1)
    torch.testing.assert_close(rendering.support[0, 3:-3, :3], torch.zeros(14, 3))
    torch.testing.assert_close(rendering.support[0, 3:-3, 6:], torch.ones(14, 24))
    torch.testing.assert_close(rendering.rgb[0, :, 3:-3, 6:-3], torch.full((3, 14, 21), 0.4))


def test_no_point_of_a_packed_view_lies_between_two_surfaces():
    depth = 2 + 0.01 * torch.arange(12.0).expand(8, 12)  # a plane at a grazing angle
    depth[:, 6:] += 1
    depth[:, 6] = 2.7  # expected depth where both surfaces are visible
    alpha = torch.ones(8, 12)
    alpha[:, 11] = 0
    packed, limits = pack_view(torch.rand(8, 12, 3), depth, alpha)
    unpacked = limits[0] + torch.floor(packed[3].float() / 2) / 127 * (limits[1] - limits[0])
    expected = depth.clone()
    expected[:, 6] = 3.07
    torch.testing.assert_close(unpacked[:, :11], expected[:, :11], atol=0.02, rtol=0)


def test_spread_poses_have_the_requested_number_and_are_even():
    for count in (20, 150):
        poses = spread_poses(POSES, torch.zeros(3), count)
        assert len(poses) == count
        directions = torch.nn.functional.normalize(poses[:, :3, 3], dim=1)
        nearest = (directions @ directions.T - 2 * torch.eye(count)).amax(1).clamp(max=1).acos()
        assert nearest.min() > 0.4 * nearest.median()


def test_a_bank_that_is_too_large_is_refused_with_numbers():
    assert bank_megabytes(1000, 256, 256) == pytest.approx(1000 * (4 * 256**2 + 8 * 625) / 1e6)
    with pytest.raises(ValueError, match=r"4000 views of 400 x 400.*2580 MB.*max_megabytes=512.*views=793 fit"):
        check_size(DetectorSettings(views=4000, size=400), 400, 400)
    # a view has one byte for each Gaussian, and a Gaussian of degree 2 has 40 numbers
    view, fixed = (4 * 256**2 + 8 * 625 + 20_000) / 1e6, 20_000 * 160 / 1e6
    assert check_size(DetectorSettings(views=500), 256, 256, 20_000, 2) == pytest.approx(500 * view + fixed)
    with pytest.raises(ValueError, match=rf"and 20000 Gaussians takes 147 MB.*views={int((140 - fixed) / view)} fit"):
        check_size(DetectorSettings(views=500, max_megabytes=140), 256, 256, 20_000, 2)
    corrected = r"and 20000 Gaussians, corrected by 30 MB of photographs, takes 177 MB"
    with pytest.raises(ValueError, match=rf"{corrected}.*views={int((140 - fixed - 30) / view)} fit"):
        check_size(DetectorSettings(max_megabytes=140), 256, 256, 20_000, 2, 30.0)
    with pytest.raises(ValueError, match="views >= 1"):
        DetectorSettings(views=0)
    with pytest.raises(ValueError, match=r"oversampling in 1 to 4.* got .* 0.5, 192 and"):
        DetectorSettings(oversampling=0.5)


@pytest.mark.parametrize(
    ("size", "drawn_size", "drawn", "expected"),
    [(0, 0, True, (200, 256)), (0, 0, False, (256, 256)), (96, 0, True, (96, 96)), (96, 128, True, (96, 128)),
     (0, 128, True, (200, 128)), (96, 128, False, (96, 96))],
)  # fmt: skip
def test_poses_are_estimated_in_smaller_windows_than_references_are_compared_in(size, drawn_size, drawn, expected):
    assert DetectorSettings(size=size, drawn_size=drawn_size).sizes(drawn=drawn) == expected


def test_a_bank_for_unknown_backgrounds_ignores_the_background(detector):
    bank = detector.bank
    view = bank.view(torch.tensor([10]))
    masked = RenderedBank(
        bank.views, bank.table_rows(torch.arange(len(bank)))[:, :2], bank.pose(torch.arange(len(bank))),
        torch.tensor([[100.0, 0, 48], [0, 100, 48], [0, 0, 1]]), silhouettes_only=True,
    )  # fmt: skip
    clutter = torch.rand(1, 3, *detector.size, generator=torch.Generator().manual_seed(0))
    query = view.rgb * view.alpha[:, None] + clutter * (1 - view.alpha[:, None])
    assert int(masked.similarity(query).argmax()) == 10


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


def test_in_other_light_the_camera_is_estimated_and_the_reference_is_relighted():
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


def test_projections_of_the_window_camera_are_cropped_and_scaled_projections_of_the_image():
    window, camera = Window(0.25, 0.5, 0.5, 0.4), Camera.from_fov(torch.eye(4), 0.7, 200, 100)
    assert window.pixels(camera, 160) == (64, 160)  # a hundred pixels by forty
    points = torch.tensor([[0.1, 0.2, 2.0], [-0.1, 0.3, 1.5]])
    in_image = camera.project(points)[0]
    in_window = window.camera(camera, 64, 160).project(points)[0]
    torch.testing.assert_close(in_window, (in_image - torch.tensor([50.0, 50.0])) * 1.6, atol=1e-4, rtol=1e-5)
