# SPDX-License-Identifier: Apache-2.0
"""Renderer of point clouds against a loop over points and pixels, written from the definition."""

import math

import numpy as np
import pytest
import torch

from anomalib_pose.render.points import VIEW_ANGLES, render_views, to_view_frame, view_rotations

SIZE = 24
ROTATIONS = view_rotations(*VIEW_ANGLES[9])


def cloud(seed: int = 0, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a bumpy shell with random unit normals."""
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    points = direction * (1 + 0.3 * torch.sin(4 * direction[:, :1])) * torch.tensor([1.0, 0.6, 0.8]) + 0.2
    return points, torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)


def rotation(axis: str, degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array({"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]]}[axis])


def window_positions(points: np.ndarray, rotation_matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Compute x and y from the window's center, z, and the camera's distance from the box's center, point by point."""
    mean = points.mean(0)
    rotated = np.array([rotation_matrix @ (p - mean) + mean for p in points])
    center = (rotated.min(0) + rotated.max(0)) / 2
    distance = 0.7 * (rotated.max(0) - rotated.min(0)).max() / math.tan(math.radians(30))
    focal = 512 / math.tan(math.radians(30))
    xy = [[focal * (p - center)[0], -focal * (p - center)[1]] / (distance - (p - center)[2]) for p in rotated]
    return np.array(xy), rotated, distance


def visibility_by_loop(
    points: np.ndarray, rotation_matrix: np.ndarray, size: int, tolerance: float = 0.0, first: bool = True
):
    """Compute row, column and visibility by comparing all pairs of points."""
    xy, rotated, _ = window_positions(points, rotation_matrix)
    pixels = [[min(max(int((value + 511.5) * size / 1024), 0), size - 1) for value in (y, x)] for x, y in xy]
    visible = []
    for i, pixel in enumerate(pixels):
        rivals = [j for j, rival in enumerate(pixels) if rival == pixel and rotated[j, 2] > rotated[i, 2] + tolerance]
        ties = [j for j, rival in enumerate(pixels) if rival == pixel and rotated[j, 2] == rotated[i, 2] and j < i]
        visible.append(not rivals and not (first and ties))
    return np.array(pixels), np.array(visible)


def rotation_matrices(number: int) -> list[np.ndarray]:
    about_x, about_y = VIEW_ANGLES[number]
    return [rotation("x", a) for a in about_x] + [rotation("y", a) for a in about_y]


@pytest.mark.parametrize("number", [5, 9, 11])
def test_rotations_are_about_x_then_y(number: int) -> None:
    rotations = view_rotations(*VIEW_ANGLES[number])
    assert len(rotations) == number
    np.testing.assert_allclose(rotations.numpy(), rotation_matrices(number), atol=1e-12)


def test_pixels_and_visibility_equal_the_double_loop() -> None:
    points, normals = cloud()
    points = torch.cat([points, points[:60]])  # ties: the first point is visible
    views = render_views(points, torch.cat([normals, normals[:60]]), ROTATIONS, spacing=0.1, size=SIZE)
    for view, rotation_matrix in enumerate(rotation_matrices(9)):
        pixels, visible = visibility_by_loop(points.double().numpy(), rotation_matrix, SIZE)
        np.testing.assert_array_equal(views.pixels[view].numpy(), pixels)
        np.testing.assert_array_equal(views.visible[view].numpy(), visible)
    assert not views.visible[:, len(points) - 60 :].any()
    assert 0.05 < views.visible.float().mean() < 0.5


def test_points_close_behind_the_front_are_visible_with_a_tolerance() -> None:
    points, normals = cloud(1)
    views = render_views(points, normals, ROTATIONS[:3], spacing=0.1, size=SIZE, depth_tolerance=0.05)
    for view, rotation_matrix in enumerate(rotation_matrices(9)[:3]):
        _, visible = visibility_by_loop(points.double().numpy(), rotation_matrix, SIZE, tolerance=0.05, first=False)
        np.testing.assert_array_equal(views.visible[view].numpy(), visible)


def test_squares_cover_the_samples_of_the_loop() -> None:
    points, normals = cloud(2, 60)
    views = render_views(points, normals, ROTATIONS[:2], spacing=0.1, size=SIZE, point_size=90.0)
    side = 2 * SIZE
    centers = (np.arange(side) + 0.5) * 1024 / side - 512
    for view, rotation_matrix in enumerate(rotation_matrices(9)[:2]):
        xy, rotated, _ = window_positions(points.double().numpy(), rotation_matrix)
        expected = np.full((side, side), -1)
        for row, y in enumerate(centers):
            for column, x in enumerate(centers):
                hit = (np.abs(xy - [x, y]) < 45).all(1)
                if hit.any():
                    expected[row, column] = np.where(hit, rotated[:, 2], -np.inf).argmax()
        np.testing.assert_array_equal(views.point_indices[view].numpy(), expected)


def test_images_are_lit_from_the_front_on_both_sides_of_a_surface() -> None:
    """A plate that faces the viewer has a closed form. The light is at twice its side, the eye at the camera."""
    x, y = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1, 1, 41), indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), torch.zeros(41 * 41)], 1)
    for sign in (1.0, -1.0):
        normals = torch.tensor([0.0, 0.0, sign]).expand(len(points), 3)
        views = render_views(points, normals, torch.eye(3)[None], spacing=0.05, size=65)
        half = 65 / 2 / 1.4  # half of the plate's side in pixels
        column = 32 + round(half * 0.8)
        offset = 0.8
        light, eye = np.array([-offset, 0, 4.0]), np.array([-offset, 0, 1.4 / math.tan(math.radians(30))])
        light, eye = light / np.linalg.norm(light), eye / np.linalg.norm(eye)
        halfway = (light + eye) / np.linalg.norm(light + eye)
        expected = 0.7 * 1.32 * light[2] + 0.4 * halfway[2] ** 100
        assert views.images[0, 32, column].item() == pytest.approx(min(expected, 1.0), abs=0.02)
        assert views.images[0, 32, 32].item() == 1.0  # the highlight
        assert views.images[0, 0, 0].item() == 1.0  # the background


def test_a_tilted_surface_is_darker() -> None:
    points, _ = cloud(3)
    gray = []
    for degrees in (0, 60):
        normal = torch.tensor([math.sin(math.radians(degrees)), 0.0, math.cos(math.radians(degrees))])
        views = render_views(points, normal.float().expand(400, 3), torch.eye(3)[None], spacing=0.1, size=SIZE)
        covered = views.point_indices[0] >= 0
        gray.append(views.images[0][covered.reshape(SIZE, 2, SIZE, 2).all(3).all(1)].mean().item())
    assert gray[1] == pytest.approx(0.7 * 1.32 * 0.5, abs=0.08)
    assert gray[0] > 0.9


def test_masks_contain_labeled_points_in_front() -> None:
    points, normals = cloud(4)
    labels = points[:, 0] > 0.6
    views = render_views(points, normals, ROTATIONS, spacing=0.1, size=SIZE)
    masks = views.masks(labels)
    for view in range(9):
        for row in range(SIZE):
            for column in range(SIZE):
                owners = (
                    views.point_indices[view, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten().tolist()
                )
                assert masks[view, row, column].item() == (sum(o >= 0 and bool(labels[o]) for o in owners) > 2)
    assert masks.any()
    assert not masks.all()


def test_default_point_size_leaves_no_hole_in_a_plate() -> None:
    x, y = torch.meshgrid(torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 60), indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), 0.2 * x.flatten()], 1)
    normals = torch.tensor([0.0, 0.0, 1.0]).expand(len(points), 3)
    views = render_views(points, normals, ROTATIONS, spacing=2 / 59, size=48)
    for owners in views.point_indices:
        for line in (*owners, *owners.T):
            covered = (line >= 0).nonzero()[:, 0]
            if len(covered):
                assert bool((line[covered[0] : covered[-1]] >= 0).all())


def test_view_frame_is_the_depth_camera_frame_rotated_about_x() -> None:
    torch.testing.assert_close(to_view_frame(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[1.0, -2.0, -3.0]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 0}, "size and samples"),
        ({"point_size": 0.0}, "point_size"),
        ({"depth_tolerance": -1.0}, "depth_tolerance"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict, words: str) -> None:
    points, normals = cloud()
    with pytest.raises(ValueError, match=words):
        render_views(points, normals, ROTATIONS, spacing=0.1, **changes)


@pytest.mark.parametrize("points", [torch.zeros(0, 3), torch.zeros(5, 3), torch.full((5, 3), torch.nan)])
def test_clouds_without_extent_are_refused(points: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="finite points at different places"):
        render_views(points, torch.zeros_like(points), ROTATIONS, spacing=0.1, size=SIZE)


def test_view_rotations_refuse_no_angles() -> None:
    with pytest.raises(ValueError, match="at least one angle"):
        view_rotations((), ())
