# SPDX-License-Identifier: Apache-2.0
"""Volume and voxel rendering against a second implementation, closed forms, a loop and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.render.volume import Rays, box_interval, camera_rays, composite
from anomalib_pose.render.voxels import BLOCK, Voxels, _march_torch, index_vertices, interpolate, render_voxels

EYE = torch.tensor([2.0, 1.0, 1.5])
CAMERA = Camera(
    look_at(EYE, torch.zeros(3), torch.tensor([0.0, 0, 1])),
    torch.tensor([[20.0, 0, 12], [0, 22, 9], [0, 0, 1]]),
    24,
    18,
)


def ball(side: int = 20, channels: int = 4) -> Voxels:
    """Make a ball of random vertices, with holes, around the origin."""
    generator = torch.Generator().manual_seed(0)
    ticks = torch.arange(side) - side / 2
    grid = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1)
    occupied = (grid.norm(dim=-1) < 0.35 * side) & (torch.rand(side, side, side, generator=generator) < 0.9)
    values = torch.randn(int(occupied.sum()), channels, generator=generator)
    values[:, 0] -= 1
    return Voxels(torch.full((3,), -1.0), 2 / side, *index_vertices(occupied), values)


def to_cells(voxels: Voxels, rays: Rays) -> Rays:
    return Rays((rays.origins - voxels.lower) / voxels.cell, rays.directions, rays.cosines)


def test_rays_project_to_their_pixels():
    rays = camera_rays(CAMERA)
    uv, depth = CAMERA.project(rays.origins + 1.7 * rays.directions)
    rows, columns = torch.meshgrid(torch.arange(18), torch.arange(24), indexing="ij")
    torch.testing.assert_close(uv, torch.stack([columns, rows], -1).reshape(-1, 2) + 0.5, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth, 1.7 * rays.cosines, atol=1e-5, rtol=0)
    pixels = torch.tensor([3, 100, 431])
    torch.testing.assert_close(camera_rays(CAMERA, pixels).directions, rays.directions[pixels])


def test_box_interval_equals_dense_sampling():
    rays = camera_rays(CAMERA)
    lower, upper = torch.tensor([-0.5, -0.3, -0.4]), torch.tensor([0.4, 0.6, 0.2])
    enter, leave = box_interval(rays, lower, upper)
    t = torch.linspace(0, 5, 20001)
    for index in range(0, len(enter), 17):
        points = rays.origins[index] + t[:, None] * rays.directions[index]
        inside = ((points > lower) & (points < upper)).all(1)
        assert bool(inside.any()) == bool(leave[index] > enter[index] + 5e-4)
        if inside.any():
            assert float(t[inside][0]) == pytest.approx(float(enter[index]), abs=5e-4)
            assert float(t[inside][-1]) == pytest.approx(float(leave[index]), abs=5e-4)


def test_composite_equals_a_loop():
    generator = torch.Generator().manual_seed(1)
    ray = torch.tensor([0, 0, 0, 2, 2, 3, 3, 3, 3])
    density, length, distance = (torch.rand(9, generator=generator, dtype=torch.float64) for _ in range(3))
    colors = torch.rand(9, 3, generator=generator, dtype=torch.float64)
    rgb, weighted_distance, alpha, weight = composite(density, colors, distance, length, ray, 5)
    for number in range(5):
        light, expected = 1.0, np.zeros(5)
        for sample in (ray == number).nonzero()[:, 0].tolist():
            sample_transmittance = math.exp(-float(density[sample] * length[sample]))
            sample_weight = light * (1 - sample_transmittance)
            assert float(weight[sample]) == pytest.approx(sample_weight, abs=1e-12)
            expected += sample_weight * np.array([*colors[sample].tolist(), float(distance[sample]), 1.0])
            light *= sample_transmittance
        composited = [*rgb[number].tolist(), float(weighted_distance[number]), float(alpha[number])]
        np.testing.assert_allclose(composited, expected, atol=1e-12)


def test_homogeneous_block_obeys_the_beer_lambert_law():
    occupied = torch.ones(17, 17, 17, dtype=torch.bool)
    values = torch.zeros(17**3, 4)
    values[:, 0] = math.log(math.expm1(0.07))  # softplus gives an optical depth of 0.07 a cell
    values[:, 1] = math.log(0.8 / 0.2)
    voxels = Voxels(torch.zeros(3), 0.25, *index_vertices(occupied), values)
    rays = Rays(torch.tensor([[2.0, 2.0, -1.0]]), torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1))
    colors, distance, alpha = render_voxels(voxels, rays, 0.5)
    assert float(alpha) == pytest.approx(1 - math.exp(-0.07 * 16), abs=1e-5)
    assert float(colors[0, 0]) == pytest.approx(0.8 * float(alpha), abs=1e-5)
    assert float(colors[0, 1]) == pytest.approx(0.5 * float(alpha), abs=1e-5)
    # mean of an exponential distribution cut off at 4 units, from the entry at distance 1
    rate = 0.07 / 0.25
    mean = 1 / rate - 4 * math.exp(-4 * rate) / (1 - math.exp(-4 * rate))
    assert float(distance / alpha) == pytest.approx(1 + mean, abs=1e-3)


@pytest.mark.parametrize("step", [1.0, 0.5])
@pytest.mark.parametrize("channels", [4, 7])
def test_kernels_equal_plain_pytorch_forward_and_backward(step, channels):
    voxels = ball(channels=channels)
    values = voxels.values.requires_grad_()
    rays = camera_rays(CAMERA)
    generator = torch.Generator().manual_seed(2)
    jitter = torch.rand(len(rays.origins), generator=generator)
    compiled = render_voxels(voxels, rays, step, jitter)
    plain = list(_march_torch(voxels, to_cells(voxels, rays), step, jitter))
    plain[1] = plain[1] * voxels.cell
    assert float(plain[2].detach().max()) > 0.9
    weights = [torch.randn(image.shape, generator=generator) for image in plain]
    gradients = []
    for images in (compiled, plain):
        total = sum((image * weight).sum() for image, weight in zip(images, weights, strict=True))
        gradients.append(torch.autograd.grad(total, values)[0])
    for compiled_image, plain_image in zip(compiled, plain, strict=True):
        # A ray of the kernels ends at a transmittance of 1e-3.
        torch.testing.assert_close(compiled_image, plain_image, atol=2e-3, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=2e-3, rtol=1e-3)


def test_gradients_of_rays_and_values_equal_finite_differences():
    voxels = ball(12)
    double = Voxels(voxels.lower.double(), voxels.cell, voxels.table, voxels.blocks, voxels.values.double())
    rays = camera_rays(Camera(CAMERA.camera_to_world.double(), CAMERA.K.double(), 24, 18), torch.arange(150, 300, 30))

    def render(origins: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        grid = Voxels(double.lower, double.cell, double.table, double.blocks, values)
        colors, distance, alpha = render_voxels(grid, Rays(origins, rays.directions, rays.cosines), 0.7)
        return torch.cat([colors.flatten(), distance, alpha])

    origins = rays.origins.clone().requires_grad_()
    assert torch.autograd.gradcheck(render, (origins, double.values.requires_grad_()), atol=1e-5, fast_mode=True)


def test_interpolation_equals_scipys():
    voxels = ball()
    dense = torch.zeros(*voxels.table.shape, 4)
    dense[..., 0] = -8
    dense[voxels.table >= 0] = voxels.values
    points = 19 * torch.rand(500, 3, generator=torch.Generator().manual_seed(3))
    values, occupied = interpolate(voxels, points)
    ticks = [np.arange(side) for side in voxels.table.shape]
    expected = RegularGridInterpolator(ticks, dense.numpy())(points.numpy())
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-5)
    corners = RegularGridInterpolator(ticks, (voxels.table >= 0).float().numpy())(points.numpy()) > 0
    np.testing.assert_array_equal(occupied.numpy(), corners)


def test_blocks_equal_a_loop():
    occupied = torch.rand(19, 16, 9, generator=torch.Generator().manual_seed(4)) < 0.001
    table, blocks = index_vertices(occupied)
    assert table[occupied].tolist() == list(range(int(occupied.sum())))
    assert bool((table[~occupied] == -1).all())
    for a, b, c in np.ndindex(*blocks.shape):
        part = occupied[
            a * BLOCK : (a + 1) * BLOCK + 1, b * BLOCK : (b + 1) * BLOCK + 1, c * BLOCK : (c + 1) * BLOCK + 1
        ]
        assert bool(blocks[a, b, c]) == bool(part.any())


def test_same_bits_on_any_number_of_threads():
    voxels = ball()
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            values = voxels.values.detach().clone().requires_grad_()
            grid = Voxels(voxels.lower, voxels.cell, voxels.table, voxels.blocks, values)
            colors, distance, alpha = render_voxels(grid, camera_rays(CAMERA), 1.0)
            (colors.sum() + distance.sum() + alpha.sum()).backward()
            results.append((colors.detach(), values.grad))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
