# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from anomalib_pose.geometry import look_at, mad_lattice, view_sphere


def assert_rigid(poses: torch.Tensor) -> None:
    rotation = poses[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(1, 2), torch.eye(3).expand(len(poses), 3, 3), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(poses)))


def test_mad_lattice_reproduces_the_published_angles() -> None:
    poses = mad_lattice(3.5)
    assert_rigid(poses)
    for i in (0, 14, 15, 104, 209):
        elevation, azimuth = math.radians(85 - 170 / 13 * (i // 15)), math.radians(120 + 320 / 14 * (i % 15))
        z = torch.tensor(
            [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
        )
        x = torch.tensor([-math.sin(azimuth), math.cos(azimuth), 0.0])
        y = torch.linalg.cross(z, x)
        # The files hold OpenGL axes [x y z]. In OpenCV axes y and z have the opposite sign.
        torch.testing.assert_close(poses[i, :3], torch.stack([x, -y, -z, 3.5 * z], -1), atol=1e-6, rtol=0)


def test_view_sphere_is_even_and_looks_at_the_origin() -> None:
    poses = view_sphere(500, 2.0)
    assert_rigid(poses)
    centers = poses[:, :3, 3]
    torch.testing.assert_close(centers.norm(dim=1), torch.full((500,), 2.0))
    torch.testing.assert_close(centers + 2 * poses[:, :3, 2], torch.zeros(500, 3), atol=1e-5, rtol=0)
    directions = centers / 2
    nearest = torch.acos((directions @ directions.T).fill_diagonal_(-1).clamp(-1, 1).amax(1))
    # Each view covers 4 pi / 500 steradians. Neighbors in a hexagonal packing are 0.17 rad apart.
    assert nearest.min() > 0.11
    assert nearest.max() < 0.2


def test_view_sphere_stays_in_its_band() -> None:
    elevation = torch.asin(view_sphere(100, 1.0, math.radians(60), math.radians(10))[:, 2, 3])
    assert elevation.min() >= math.radians(10) - 1e-6
    assert elevation.max() <= math.radians(60) + 1e-6


def test_look_at_has_up_upwards_also_at_the_pole() -> None:
    up = torch.tensor([0.0, 0.0, 1.0])
    eyes = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    poses = look_at(eyes, torch.zeros(3), up)
    assert_rigid(poses)
    torch.testing.assert_close(poses[:, :3, 2], -eyes / eyes.norm(dim=1, keepdim=True))
    assert poses[0, 2, 1] < -0.8
    with pytest.raises(ValueError, match="differ from its optical center"):
        look_at(torch.zeros(3), torch.zeros(3), up)


def test_invalid_spheres_are_refused() -> None:
    with pytest.raises(ValueError, match="view sphere"):
        view_sphere(0, 1.0)
    with pytest.raises(ValueError, match="view sphere"):
        view_sphere(10, 1.0, 0.2, 0.3)
