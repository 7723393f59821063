# SPDX-License-Identifier: Apache-2.0
import math

import cv2
import numpy as np
import pytest
import torch

from anomalib_pose.geometry import (
    Camera,
    pose_error,
    resize_image_mask_K,
    scale_focal_lengths,
    se3_exp,
    view_sphere,
    viewed_point,
)


def camera_at(tangent: list[float], width: int = 64, height: int = 48) -> Camera:
    return Camera.from_fov(se3_exp(torch.tensor(tangent, dtype=torch.float64)), 0.9, width, height)


def test_projection_agrees_with_opencv() -> None:
    camera = camera_at([0.1, -0.2, -4.0, 0.2, -0.3, 0.5])
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    viewmat = torch.linalg.inv(camera.camera_to_world).numpy()
    rvec, _ = cv2.Rodrigues(viewmat[:3, :3])
    expected, _ = cv2.projectPoints(points.numpy(), rvec, viewmat[:3, 3], camera.K.numpy(), None)
    uv, depth = camera.project(points)
    np.testing.assert_allclose(uv.numpy(), expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(depth.numpy(), (viewmat @ np.c_[points, np.ones(20)].T)[2], atol=1e-12)


def test_unprojected_pixels_project_to_their_centers() -> None:
    poses = torch.stack([camera_at([0.1, -0.2, -4.0, 0.2, -0.3, 0.5]).camera_to_world, torch.eye(4).double()])
    cameras = camera_at([0.0] * 6, width=5, height=3).with_pose(poses)
    depth = 1 + torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = cameras.unproject(depth)
    rows, columns = np.mgrid[:3, :5] + 0.5
    for index in range(2):
        uv, unprojected_depth = cameras[index].project(points[index].flatten(0, 1))
        np.testing.assert_allclose(uv.numpy(), np.stack([columns.ravel(), rows.ravel()], 1), atol=1e-9)
        np.testing.assert_allclose(unprojected_depth.numpy(), depth[index].flatten().numpy(), atol=1e-12)


def test_field_of_view_is_the_angle_between_the_borders() -> None:
    camera = Camera.from_fov(torch.eye(4, dtype=torch.float64), 0.6911111611634243, 800, 800)
    assert camera.K[0, 0].item() == pytest.approx(1111.111, abs=1e-3)
    border = torch.tensor([[math.tan(0.6911111611634243 / 2), 0.0, 1.0]], dtype=torch.float64)
    assert camera.project(border)[0][0, 0].item() == pytest.approx(800)


def test_opengl_camera_looks_along_minus_z_with_y_up() -> None:
    camera = Camera.from_opengl(torch.eye(4), camera_at([0.0] * 6).K.float(), 64, 48)
    uv, depth = camera.project(torch.tensor([[0.0, 0.5, -2.0]]))
    assert depth.item() == pytest.approx(2.0)
    assert uv[0, 1] < 24 < uv[0, 1] + 24


def test_batch_index_and_stack_agree_with_single_cameras() -> None:
    cameras = [camera_at([0.1 * i, 0, -3, 0, 0.1 * i, 0]) for i in range(3)]
    batch = Camera.stack(cameras)
    points = torch.randn(5, 3, dtype=torch.float64)
    uv, depth = batch.project(points)
    for i, camera in enumerate(cameras):
        torch.testing.assert_close(uv[i], camera.project(points)[0])
        torch.testing.assert_close(depth[i], batch[i].project(points)[1])
    assert len(batch) == 3
    assert cameras[0].batched().batch_shape == (1,)


def test_resizing_keeps_the_same_scene_point_at_the_same_relative_place() -> None:
    image = torch.zeros(3, 48, 64)
    image[:, 20:28, 40:48] = 1
    mask = image[0].clone()
    camera = camera_at([0, 0, -3, 0, 0, 0])
    small, small_mask, intrinsics = resize_image_mask_K(image, mask, camera.K.float(), 32, 24)
    assert small_mask is not None
    rows, columns = torch.nonzero(small_mask, as_tuple=True)
    # The square's borders are at 40 and 48 px of 64, hence 20 and 24 px of 32.
    assert (columns.min().item(), columns.max().item() + 1) == (20, 24)
    assert (rows.min().item(), rows.max().item() + 1) == (10, 14)
    assert set(small_mask.unique().tolist()) == {0.0, 1.0}
    assert small[0].mean().item() == pytest.approx(image[0].mean().item(), rel=1e-3)
    torch.testing.assert_close(intrinsics, camera.resized(32, 24).K.float())
    points = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(camera.resized(32, 24).project(points)[0], camera.project(points)[0] / 2)


def test_viewed_point_is_where_all_axes_meet() -> None:
    target = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    poses = view_sphere(12, 3.0).double()
    poses[:, :3, 3] += target
    point, distances = viewed_point(Camera.from_fov(poses, 0.7, 64, 64))
    torch.testing.assert_close(point, target, atol=1e-4, rtol=0)
    assert distances.max() < 1e-4
    # Two skew axes: the point is halfway between them, at half their distance from each.
    crossing = torch.eye(4).double().repeat(2, 1, 1)
    crossing[0, :3, 3] = torch.tensor([0.0, 0.5, -2.0])
    crossing[1, :3, :3] = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    crossing[1, :3, 3] = torch.tensor([-2.0, -0.5, 0.0])
    point, distances = viewed_point(Camera.from_fov(crossing, 0.7, 64, 64))
    torch.testing.assert_close(point, torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(distances, torch.full((2,), 0.5).double(), atol=1e-5, rtol=0)


def test_pose_error_measures_rotation_and_distance() -> None:
    truth = camera_at([0, 0, -3, 0, 0, 0.4]).camera_to_world
    moved = truth @ se3_exp(torch.tensor([0.3, 0.0, 0.4, 0, 0.2, 0], dtype=torch.float64))
    angle, distance = pose_error(moved, truth)
    assert angle.item() == pytest.approx(0.2)
    # The exponential's translation: V(omega) v, here by its closed form for a rotation about y.
    s, c = math.sin(0.2) / 0.2, (1 - math.cos(0.2)) / 0.2
    assert distance.item() == pytest.approx(math.hypot(0.3 * s + 0.4 * c, -0.3 * c + 0.4 * s))


@pytest.mark.parametrize(
    ("pose", "intrinsics", "size"),
    [((3, 4), (3, 3), (4, 4)), ((2, 4, 4), (3, 3), (4, 4)), ((4, 4), (3, 3), (0, 4))],
)
def test_invalid_cameras_are_refused(pose: tuple, intrinsics: tuple, size: tuple) -> None:
    with pytest.raises(ValueError, match="needs"):
        Camera(torch.zeros(pose), torch.zeros(intrinsics), *size)


def test_different_sizes_do_not_stack() -> None:
    with pytest.raises(ValueError, match="Resize them first"):
        Camera.stack([camera_at([0] * 6), camera_at([0] * 6, width=65)])


def test_a_scaled_focal_length_moves_points_from_the_principal_point() -> None:
    K = torch.tensor([[50.0, 0, 30], [0, 60, 20], [0, 0, 1]])
    point = torch.tensor([[0.2, -0.3, 2.0]])
    before, after = (
        Camera(torch.eye(4), intrinsics, 64, 48).project(point)[0] for intrinsics in (K, scale_focal_lengths(K, 1.1))
    )
    torch.testing.assert_close(after - K[:2, 2], 1.1 * (before - K[:2, 2]))


def test_median_intrinsics_equal_numpys_even_for_expanded_intrinsics() -> None:
    camera = Camera.from_fov(torch.eye(4), 0.7, 64, 48)
    shared = camera.with_pose(torch.eye(4).expand(24, 4, 4))
    torch.testing.assert_close(shared.median_intrinsics, camera.K)
    several = Camera(torch.eye(4).expand(5, 4, 4), camera.K * torch.tensor([1.0, 5, 2, 4, 3])[:, None, None], 64, 48)
    np.testing.assert_allclose(several.median_intrinsics.numpy(), np.median(several.K.numpy(), axis=0))
