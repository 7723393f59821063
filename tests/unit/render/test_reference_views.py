# SPDX-License-Identifier: Apache-2.0
"""Reference views against the published formulas, which this file implements independently."""

import math

import numpy as np
import pytest
import torch

from anomalib_pose.geometry import look_at
from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.reference_views import ReferenceView, reference_camera, render_reference_views
from anomalib_pose.render.visibility import sample_surface


def box(half: tuple[float, float, float], center: tuple[float, float, float]) -> Mesh:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half + np.array(center)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return Mesh.flat(
        torch.from_numpy(corners).float(), torch.tensor(faces, dtype=torch.int32), torch.ones(len(faces), 3)
    )


HALF, CENTER = (0.5, 0.7, 0.3), (0.1, -0.05, 0.2)


@pytest.fixture(scope="module")
def views() -> list[ReferenceView]:
    return list(render_reference_views(box(HALF, CENTER), views=4, seed=3))


def published_row_column(view: ReferenceView, points: np.ndarray) -> np.ndarray:
    """Compute row v and column 256 - u of K [R | t] X with the stored OpenGL matrices."""
    camera_to_world = view.camera.camera_to_world.numpy() * [1, -1, -1, 1]
    intrinsics = view.camera.K.numpy()
    in_camera = np.linalg.inv(camera_to_world) @ np.column_stack([points, np.ones(len(points))]).T
    u, v, w = intrinsics @ in_camera[:3]
    assert (w < 0).all()
    return np.column_stack([v / w, 256 - u / w])


def test_cameras_stand_on_the_ring_and_look_at_the_target() -> None:
    azimuth, elevation, distance = 0.7, 0.3, 2.5
    target = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
    camera = reference_camera(azimuth, elevation, distance, target)
    eye = [
        distance * math.cos(elevation) * math.cos(azimuth),
        distance * math.sin(elevation),
        distance * math.cos(elevation) * math.sin(azimuth),
    ]
    expected = look_at(torch.tensor(eye, dtype=torch.float64), target, torch.tensor([0.0, 1, 0], dtype=torch.float64))
    torch.testing.assert_close(camera.camera_to_world, expected)
    pixel, _ = camera.project(target[None])
    assert pixel[0].tolist() == pytest.approx([128, 128])


def test_positions_project_into_their_cells_with_the_published_matrices(views: list[ReferenceView]) -> None:
    for view in views:
        filled = (view.xyz != -1).any(-1)
        cells = torch.nonzero(filled).numpy()
        projected = published_row_column(view, view.xyz[filled].numpy()) / 8
        assert filled.sum() > 150
        assert np.abs(projected - cells).max() <= 0.5 + 1e-9


def test_positions_lie_on_the_visible_sides_of_the_box(views: list[ReferenceView]) -> None:
    for view in views:
        points = view.xyz[(view.xyz != -1).any(-1)].numpy()
        local = (points - CENTER) / HALF
        eye = (view.camera.center.numpy() - CENTER) / HALF
        on_side = np.abs(np.abs(local) - 1) < 1e-6
        assert on_side.any(1).all()
        # The visible points of a convex solid are exactly the points on sides that face the eye.
        assert (on_side & (np.sign(local) * eye > 1)).any(1).all()


def test_points_are_the_same_in_all_views(views: list[ReferenceView]) -> None:
    points = sample_surface(box(HALF, CENTER), 2000, np.random.default_rng([3, 0])).numpy()
    for view in views:
        assert np.abs(published_row_column(view, points) - view.pixels.numpy()).max() <= 0.5 + 1e-9
        local, eye = (points - CENTER) / HALF, (view.camera.center.numpy() - CENTER) / HALF
        in_front = ((np.abs(np.abs(local) - 1) < 1e-6) & (np.sign(local) * eye > 1)).any(1)
        np.testing.assert_array_equal(view.visible.numpy(), in_front)


def test_brightness_follows_the_fit_to_the_published_renderings() -> None:
    """A plate is tilted against the camera by 50 degrees."""
    tilt = math.radians(50)
    plate = box((0.5, 0.4, 1e-4), (0.0, 0.0, 0.0))
    rotation = torch.tensor([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    mesh = Mesh.flat(plate.vertices @ rotation.T, plate.faces, torch.ones(12, 3))
    (view,) = render_reference_views(rotate_z_to_x(mesh), views=1, elevation=0.0, distance=3.0)
    assert float(view.gray[128, 128]) * 255 == pytest.approx(67.5 + 102.5 * math.cos(tilt), abs=0.05)
    assert float(view.gray[0, 0]) == 1
    assert float(view.depth[0, 0]) == 0


def rotate_z_to_x(mesh: Mesh) -> Mesh:
    """Rotate the z axis to the x axis, the direction of the first camera."""
    rotation = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    return Mesh.flat(mesh.vertices @ rotation.T, mesh.faces, torch.ones(len(mesh.faces), 3))


def test_depth_is_along_the_optical_axis(views: list[ReferenceView]) -> None:
    view = views[0]
    covered = torch.nonzero(view.depth > 0)
    for row, column in covered[:: len(covered) // 50].tolist():
        ray = np.linalg.inv(view.camera.K.numpy()) @ [column + 0.5, row + 0.5, 1]
        point = view.camera.camera_to_world.numpy()[:3] @ [*(ray * float(view.depth[row, column])), 1]
        assert np.abs((point - CENTER) / HALF).max() == pytest.approx(1, abs=1e-4)


def test_numbers_out_of_range_are_refused() -> None:
    mesh = box(HALF, CENTER)
    for options in ({"views": 0}, {"elevation": 1.6}, {"distance": 0.5}, {"distance": math.nan}):
        with pytest.raises(ValueError, match="views has to be 1 or more"):
            next(render_reference_views(mesh, **options))
