# SPDX-License-Identifier: Apache-2.0
"""Normals against a sphere's and against LAPACK's eigenvectors; spacings against all pairs."""

import numpy as np
import pytest
import torch

from anomalib_pose.render.point_normals import grid_normals, grid_spacing, neighbor_normals, point_spacing


def hemisphere(size: int = 41) -> tuple[torch.Tensor, torch.Tensor]:
    """Make organized points on a sphere of radius 1 about (0, 0, 3), and the mask of cells that hold a point."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    square = 1 - x**2 - y**2
    valid = square > 0.2
    points = torch.stack([x, y, 3 - square.clamp_min(0).sqrt()], -1)
    return torch.where(valid[..., None], points, 0), valid


def test_grid_normals_of_a_sphere_point_to_its_center() -> None:
    points, valid = hemisphere()
    normals = grid_normals(points, valid, 3)
    radial = points - torch.tensor([0.0, 0.0, 3.0])
    inner = torch.zeros_like(valid)
    inner[12:29, 12:29] = True
    assert ((normals * radial).sum(-1).abs()[inner] > 0.999).all()
    assert (normals[~valid] == 0).all()
    torch.testing.assert_close(normals[valid].norm(dim=-1), torch.ones(int(valid.sum())))


def test_grid_normals_are_the_planes_through_the_windows() -> None:
    g = torch.Generator().manual_seed(0)
    points = torch.randn(9, 8, 3, generator=g)
    valid = torch.rand(9, 8, generator=g) > 0.3
    normals = grid_normals(points, valid, 5)
    for row, column in valid.nonzero().tolist():
        window = (slice(max(0, row - 2), row + 3), slice(max(0, column - 2), column + 3))
        near = points[window][valid[window]].double().numpy()
        if len(near) < 4:
            continue
        _, axes = np.linalg.eigh(np.cov(near.T))
        assert abs(axes[:, 0] @ normals[row, column].double().numpy()) == pytest.approx(1, abs=1e-5)


def test_neighbor_normals_are_those_of_the_nearest_points() -> None:
    g = torch.Generator().manual_seed(1)
    points = torch.randn(50, 3, generator=g)
    normals = neighbor_normals(points, 8)
    for point, normal in zip(points, normals, strict=True):
        near = points[(points - point).norm(dim=1).argsort()[:8]].double().numpy()
        _, axes = np.linalg.eigh(np.cov(near.T))
        assert abs(axes[:, 0] @ normal.double().numpy()) == pytest.approx(1, abs=1e-5)


def test_points_on_a_plane_have_its_normal_and_points_in_one_place_have_z() -> None:
    g = torch.Generator().manual_seed(2)
    flat = torch.rand(100, 3, generator=g) * torch.tensor([1.0, 1.0, 0.0]) + 5
    assert (neighbor_normals(flat, 10)[:, 2].abs() > 1 - 1e-6).all()
    assert (neighbor_normals(torch.ones(5, 3), 3) == torch.tensor([0.0, 0.0, 1.0])).all()


def test_spacings_are_medians_of_all_neighbor_distances() -> None:
    points, valid = hemisphere()
    row, column = valid.nonzero().T
    distances = []
    for r, c in zip(row.tolist(), column.tolist(), strict=True):
        neighbors = [cell for cell in ((r + 1, c), (r, c + 1)) if max(cell) < 41 and valid[cell]]
        distances += [(points[r, c] - points[cell]).norm().item() for cell in neighbors]
    assert grid_spacing(points, valid) == pytest.approx(sorted(distances)[(len(distances) - 1) // 2])
    assert grid_spacing(points, torch.zeros_like(valid)) == 0
    cloud = torch.randn(200, 3, generator=torch.Generator().manual_seed(3))
    nearest = torch.cdist(cloud, cloud).fill_diagonal_(torch.inf).amin(1)
    assert point_spacing(cloud) == pytest.approx(np.median(nearest.numpy()), rel=1e-3)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="three points"):
        neighbor_normals(torch.zeros(2, 3), 3)
    with pytest.raises(ValueError, match="two points"):
        point_spacing(torch.zeros(1, 3))
