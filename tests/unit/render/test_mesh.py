# SPDX-License-Identifier: Apache-2.0
"""Mesh renderer against rays that are intersected with all triangles, and against lights in closed form."""

import math

import numpy as np
import pytest
import torch

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.render.mesh import Mesh, rasterize_mesh
from anomalib_pose.render.mesh_lighting import Light, bake_light, render_mesh

UP = torch.tensor([0.0, 0.0, 1.0])
WHITE = (1.0, 1.0, 1.0)
DARK = (0.0, 0.0, 0.0)


def soup(seed: int, count: int) -> Mesh:
    generator = torch.Generator().manual_seed(seed)
    corners = (
        torch.rand((count, 1, 3), generator=generator) - 0.5 + 0.4 * torch.randn((count, 3, 3), generator=generator)
    )
    faces = torch.arange(3 * count, dtype=torch.int32).reshape(-1, 3)
    return Mesh.flat(corners.reshape(-1, 3), faces, torch.rand((count, 3), generator=generator))


def square(z: float, half: float, color: float = 1.0) -> Mesh:
    """Make a square perpendicular to the z axis, with its lit side up."""
    vertices = torch.tensor([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    return Mesh.flat(vertices, faces, torch.full((2, 3), color))


def join(*meshes: Mesh) -> Mesh:
    vertices, faces, count = [], [], 0
    for mesh in meshes:
        vertices.append(mesh.vertices)
        faces.append(mesh.faces + count)
        count += len(mesh.vertices)
    colors = torch.cat([mesh.colors for mesh in meshes])
    return Mesh(torch.cat(vertices), torch.cat(faces).int(), colors, torch.cat([mesh.normals for mesh in meshes]))


def camera_at(*eye: float, size: int = 40) -> Camera:
    return Camera.from_fov(look_at(torch.tensor(eye), torch.zeros(3), UP), 0.6, size, size + 4)


def trace_rays(mesh: Mesh, camera: Camera, per_pixel: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Compute depth (0 for none) and nearest face (-1 for none) by solving for each ray and triangle."""
    rows, columns = camera.height * per_pixel, camera.width * per_pixel
    y, x = np.mgrid[:rows, :columns]
    pixels = np.stack([(x + 0.5) / per_pixel, (y + 0.5) / per_pixel, np.ones_like(x, float)], -1).reshape(-1, 3)
    pose = camera.camera_to_world.double().numpy()
    rays = pixels @ np.linalg.inv(camera.K.double().numpy()).T @ pose[:3, :3].T
    depth, face = np.full(len(rays), np.inf), np.full(len(rays), -1)
    for number, corners in enumerate(mesh.vertices.double().numpy()[mesh.faces.numpy()]):
        system = np.stack(
            [rays, *np.broadcast_to(-(corners[1:] - corners[0]), (len(rays), 2, 3)).transpose(1, 0, 2)], -1
        )
        t, u, v = np.linalg.solve(system, np.broadcast_to(corners[0] - pose[:3, 3], (len(rays), 3))[..., None])[
            ..., 0
        ].T
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & (t < depth)
        depth[hit], face[hit] = t[hit], number
    return np.where(face < 0, 0, depth).reshape(rows, columns), face.reshape(rows, columns)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_depth_face_and_coverage_equal_traced_rays(seed: int) -> None:
    mesh, camera = soup(seed, 12), camera_at(1.5, -2.5, 1.2)
    output = render_mesh(mesh, camera)
    depth, face = trace_rays(mesh, camera)
    np.testing.assert_array_equal(output.face.numpy(), face)
    np.testing.assert_allclose(output.depth.numpy(), depth, rtol=1e-5)
    samples = (trace_rays(mesh, camera, 3)[1] >= 0).reshape(camera.height, 3, camera.width, 3)
    np.testing.assert_allclose(output.alpha.numpy(), samples.mean((1, 3)), atol=1e-6)
    assert 0.05 < (face >= 0).mean() < 0.95


def test_weights_locate_the_sample_on_its_face() -> None:
    mesh, camera = soup(3, 8), camera_at(0.4, -2.0, 1.0)
    fragments = rasterize_mesh(mesh, camera, 3)
    uv, z = camera.project(fragments.interpolate(mesh, mesh.vertices))
    columns = camera.width * 3
    expected = torch.stack([fragments.index % columns, fragments.index // columns], 1) / 3 + 1 / 6
    torch.testing.assert_close(uv, expected.float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(z, fragments.depth, atol=1e-4, rtol=0)


def test_shared_edges_leave_no_crack() -> None:
    generator = np.random.default_rng(0)
    grid = np.stack(
        [*np.meshgrid(np.linspace(-3, 3, 40), np.linspace(-3, 3, 40), indexing="ij"), np.zeros((40, 40))], 2
    )
    grid[1:-1, 1:-1] += generator.uniform(-0.05, 0.05, (38, 38, 3))
    number = np.arange(1600).reshape(40, 40)
    a, b, c, d = number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    mesh = Mesh.flat(
        torch.from_numpy(grid.reshape(-1, 3)).float(), torch.from_numpy(faces).int(), torch.ones(len(faces), 3)
    )
    assert bool((rasterize_mesh(mesh, camera_at(0.1, -0.2, 3.0)).index == torch.arange(40 * 44 * 9)).all())


def test_closed_solids_render_equally_without_their_back_faces() -> None:
    corners = torch.tensor([[0.5, 0.5, 0.5], [0.5, -0.5, -0.5], [-0.5, 0.5, -0.5], [-0.5, -0.5, 0.5]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], dtype=torch.int32)
    mesh = Mesh.flat(corners, faces, torch.eye(4)[:, :3])
    assert bool(((mesh.normals * mesh.vertices).sum(1) > 0).all())
    closed = Mesh(mesh.vertices, mesh.faces, mesh.colors, mesh.normals, closed=True)
    light = Light()
    for eye in ((2.0, 0.3, 0.4), (-1.0, 1.0, 1.5), (0.2, -2.0, -0.6)):
        first = render_mesh(mesh, camera_at(*eye), light, bake_light(mesh, light))
        second = render_mesh(closed, camera_at(*eye), light, bake_light(mesh, light))
        assert torch.equal(first.face, second.face)
        assert torch.equal(first.rgb, second.rgb)


def test_an_unoccluded_square_receives_the_mean_of_sky_and_ground() -> None:
    """The cosine-weighted mean over the upper hemisphere is 5/6 of the sky color and 1/6 of the ground color."""
    light = Light(sky=(0.6, 0.3, 0.0), ground=(0.0, 0.6, 0.3), key=DARK, fill=DARK)
    irradiance = bake_light(square(0.0, 1.0), light).irradiance
    expected = torch.tensor(light.sky) * 5 / 6 + torch.tensor(light.ground) / 6
    torch.testing.assert_close(irradiance, expected.expand(6, 3), atol=0.01, rtol=0)


def test_lamp_follows_the_cosine_and_is_hidden_by_a_roof() -> None:
    light = Light(
        sky=DARK,
        ground=DARK,
        fill=DARK,
        key=(0.8, 0.4, 0.2),
        key_direction=(0.0, 1.0, 1.0),
        softness=0.01,
        specular=0.0,
    )
    open_floor = bake_light(square(0.0, 0.2), light)
    expected = torch.tensor(light.key) * math.cos(math.pi / 4)
    torch.testing.assert_close(open_floor.irradiance, expected.expand(6, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(open_floor.key_visibility, torch.ones(6), atol=1e-5, rtol=0)
    covered_floor = bake_light(join(square(0.0, 0.2), square(0.5, 1.0)), light)
    assert float(covered_floor.irradiance[:6].abs().max()) == 0
    torch.testing.assert_close(covered_floor.irradiance[6:], expected.expand(6, 3), atol=1e-3, rtol=0)


def test_flat_color_background_and_intensity() -> None:
    """A display color is the root of the squared albedo times the light: half the light divides it by the root of 2."""
    light = Light(sky=WHITE, ground=WHITE, key=DARK, fill=DARK, specular=0.0)
    mesh, camera = square(0.0, 0.3, 0.5), camera_at(0.0, -0.01, 2.0)
    baked = bake_light(mesh, light)
    bright = render_mesh(mesh, camera, light, baked, background=(0.2, 0.4, 0.6))
    dim = render_mesh(mesh, camera, Light(**{**vars(light), "intensity": 0.5}), baked)
    center = (camera.height // 2, camera.width // 2)
    torch.testing.assert_close(bright.rgb[center], torch.full((3,), 0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(dim.rgb[center], bright.rgb[center] / math.sqrt(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(bright.rgb[0, 0], torch.tensor([0.2, 0.4, 0.6]))
    edge = (bright.alpha > 0) & (bright.alpha < 1)
    assert bool(edge.any())
    blended = bright.alpha[edge][:, None] * 0.5 + (1 - bright.alpha[edge])[:, None] * torch.tensor([0.2, 0.4, 0.6])
    torch.testing.assert_close(bright.rgb[edge], blended, atol=0.01, rtol=0)


def test_empty_view_is_background() -> None:
    camera = Camera.from_fov(look_at(torch.tensor([0.0, -2.0, 0.0]), torch.tensor([0.0, -4.0, 0.0]), UP), 0.6, 8, 8)
    output = render_mesh(square(0.0, 0.3), camera)
    assert bool((output.rgb == 1).all() and (output.alpha == 0).all() and (output.face == -1).all())


def test_errors_name_the_invalid_value() -> None:
    mesh, camera = square(0.0, 0.3), camera_at(0.0, -2.0, 1.0)
    with pytest.raises(ValueError, match="got 2"):
        rasterize_mesh(mesh, camera, 2)
    with pytest.raises(ValueError, match="one camera at a time"):
        rasterize_mesh(mesh, camera.batched())
    with pytest.raises(ValueError, match=r"found 0\.\.7"):
        Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 7]]), torch.zeros(3, 3), torch.zeros(3, 3))
