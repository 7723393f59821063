# SPDX-License-Identifier: Apache-2.0
"""Points on meshes against rays that are intersected with all triangles, and against closed forms."""

import numpy as np
import pytest
import torch

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.visibility import sample_surface, surface_centroid, visible_points

UP = torch.tensor([0.0, 0.0, 1.0])


def triangles(corners: torch.Tensor) -> Mesh:
    faces = torch.arange(3 * len(corners), dtype=torch.int32).reshape(-1, 3)
    return Mesh.flat(corners.reshape(-1, 3), faces, torch.ones(len(corners), 3))


def soup(seed: int, count: int) -> Mesh:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand((count, 1, 3), generator=generator) - 0.5
    return triangles(centers + 0.25 * torch.randn((count, 3, 3), generator=generator))


def square(side: float) -> Mesh:
    a, b, c, d = (torch.tensor(p) for p in ((0.0, 0, 0), (side, 0, 0), (side, side, 0), (0.0, side, 0)))
    return triangles(torch.stack([torch.stack([a, b, c]), torch.stack([a, c, d])]))


def reached_by_rays(mesh: Mesh, eye: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return whether the segment from the eye to each point crosses no triangle."""
    free = np.ones(len(points), bool)
    rays = points - eye
    for a, b, c in mesh.vertices.double().numpy()[mesh.faces.numpy()]:
        system = np.stack([rays, np.broadcast_to(a - b, rays.shape), np.broadcast_to(a - c, rays.shape)], -1)
        t, u, v = np.linalg.solve(system, np.broadcast_to(a - eye, rays.shape)[..., None])[..., 0].T
        free &= ~((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & (t < 1 - 1e-6))
    return free


@pytest.mark.parametrize(("seed", "width", "height"), [(0, 64, 48), (1, 64, 48), (2, 6, 4)])
def test_visible_points_are_those_that_rays_reach(seed: int, width: int, height: int) -> None:
    mesh = soup(seed, 60)
    eye = torch.tensor([1.5, -2.0, 1.2])
    camera = Camera.from_fov(
        look_at(eye, torch.zeros(3), UP), 0.3, width, height
    )  # much of the mesh is outside the image
    on_surface = sample_surface(mesh, 600, np.random.default_rng(seed))
    in_space = torch.rand((200, 3), generator=torch.Generator().manual_seed(seed)).double() - 0.5
    points = torch.cat([on_surface, in_space])

    expected = reached_by_rays(mesh, eye.double().numpy(), points.numpy())

    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_array_equal(visible_points(mesh, camera, points).numpy(), expected)


def test_points_behind_the_camera_are_not_visible() -> None:
    camera = Camera.from_fov(look_at(torch.tensor([0.0, -3.0, 0.0]), torch.zeros(3), UP), 0.5, 32, 32)
    points = torch.tensor([[0.0, -4.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    mesh = soup(0, 1)
    assert visible_points(mesh, camera, points).tolist() == [False, True]
    assert visible_points(mesh, camera, points[:1]).tolist() == [False]


def test_samples_of_a_square_have_the_moments_of_an_even_density() -> None:
    points = sample_surface(square(2.0), 20_000, np.random.default_rng(0)).numpy()
    np.testing.assert_allclose(points.mean(0), [1, 1, 0], atol=0.02)
    np.testing.assert_allclose(points[:, :2].T @ points[:, :2] / len(points), [[4 / 3, 1], [1, 4 / 3]], atol=0.03)
    np.testing.assert_array_equal(points[:, 2], 0)


def test_larger_faces_get_more_samples_and_weigh_more_in_the_centroid() -> None:
    small = torch.tensor([[[0.0, 0, 5], [1, 0, 5], [0, 1, 5]]])
    mesh = triangles(torch.cat([small, small * torch.tensor([3.0, 1.0, 0.0])]))  # areas 1/2 and 3/2
    points = sample_surface(mesh, 10_000, np.random.default_rng(0))
    assert float((points[:, 2] > 2).double().mean()) == pytest.approx(0.25, abs=0.02)
    expected = (0.25 * np.array([1 / 3, 1 / 3, 5]) + 0.75 * np.array([1, 1 / 3, 0])).tolist()
    assert surface_centroid(mesh).tolist() == pytest.approx(expected)


def test_a_surface_without_area_is_refused() -> None:
    mesh = triangles(torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="no area"):
        surface_centroid(mesh)
    with pytest.raises(ValueError, match="no area"):
        sample_surface(mesh, 5, np.random.default_rng(0))
