# SPDX-License-Identifier: Apache-2.0
"""A small deterministic z-buffer renderer for colored triangle meshes, in software.

The steps are separate, so that two meshes can be compared sample by sample: ``rasterize_mesh`` finds the visible
surface, ``bake_light`` the light that reaches each vertex, ``shade`` the color of samples, ``resolve`` the pixels.
``render_mesh`` does all of them. Light is computed on squared colors (a gamma of 2).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.mesh_kernels import add_visible, interpolate, scan

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_NEAR = 1e-6
_SHADOW_MAP = 320
_SKY_SAMPLES, _LAMP_SAMPLES = 48, 9


@dataclass(frozen=True)
class Mesh:
    """Triangles with colors and normals at their vertices.

    Args:
        vertices: positions in the world frame.
        faces: indices of three vertices each; their order does not matter, surfaces are seen from both sides.
        colors: display colors in [0, 1].
        normals: unit normals on the lit side.
        closed: True if the faces bound solids, so that the sides that normals turn away from us need not be drawn.

    Raises:
        ValueError: if a face names a vertex that does not exist.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    colors: Float[Tensor, "v 3"]
    normals: Float[Tensor, "v 3"]
    closed: bool = False

    def __post_init__(self) -> None:
        if len(self.faces) and not 0 <= int(self.faces.min()) <= int(self.faces.max()) < len(self.vertices):
            msg = (
                f"Faces of a mesh name vertices 0..{len(self.vertices) - 1}, "
                f"found {int(self.faces.min())}..{int(self.faces.max())}."
            )
            raise ValueError(msg)

    @classmethod
    def flat(
        cls, vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], face_colors: Float[Tensor, "f 3"]
    ) -> "Mesh":
        """Mesh with one color and one normal per face: no two faces share vertices.

        Args:
            vertices: positions in the world frame.
            faces: indices, counter-clockwise seen from the lit side.
            face_colors: display colors in [0, 1].
        """
        corners = vertices[faces.long()]
        normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        index = torch.arange(3 * len(faces), dtype=faces.dtype).reshape(-1, 3)
        return cls(corners.reshape(-1, 3), index, face_colors.repeat_interleave(3, 0), normal.repeat_interleave(3, 0))


@dataclass(frozen=True)
class Light:
    """Soft daylight: a hemisphere of sky and ground, and two lamps with soft shadows, all fixed in the world.

    Args:
        sky: color and strength of light from +z.
        ground: color and strength of light from -z; in between both are mixed.
        key_direction: towards the main lamp; any length.
        key: color and strength of the main lamp.
        fill_direction: towards the second lamp; any length.
        fill: color and strength of the second lamp.
        softness: angular radius of the lamps, radians.
        specular: strength of the main lamp's highlight.
        shininess: exponent of the highlight (Blinn-Phong).
        intensity: factor on all light.
    """

    sky: tuple[float, float, float] = (0.56, 0.58, 0.62)
    ground: tuple[float, float, float] = (0.34, 0.33, 0.32)
    key_direction: tuple[float, float, float] = (0.55, -0.45, 0.9)
    key: tuple[float, float, float] = (0.62, 0.60, 0.56)
    fill_direction: tuple[float, float, float] = (-0.8, 0.5, 0.25)
    fill: tuple[float, float, float] = (0.16, 0.17, 0.19)
    softness: float = 0.16
    specular: float = 0.10
    shininess: float = 30.0
    intensity: float = 1.0


@dataclass(frozen=True)
class BakedLight:
    """Light at a mesh's vertices, shadows included, without ``Light.intensity``.

    Args:
        irradiance: light that reaches the vertex, per color.
        key_visibility: share of the main lamp that is not hidden, in [0, 1].
    """

    irradiance: Float[Tensor, "v 3"]
    key_visibility: Float[Tensor, " v"]


@dataclass(frozen=True)
class Fragments:
    """The samples of an image that see the mesh, in row-major order.

    Args:
        index: position in the flattened grid of samples, ``height * supersampling`` rows.
        face: the face that is seen.
        weights: its barycentric weights there, corrected for perspective.
        depth: depth along the optical axis.
        width: image width in pixels.
        height: image height in pixels.
        supersampling: samples per pixel along each axis.
    """

    index: Int[Tensor, " n"]
    face: Int[Tensor, " n"]
    weights: Float[Tensor, "n 3"]
    depth: Float[Tensor, " n"]
    width: int
    height: int
    supersampling: int

    def __getitem__(self, chosen: Tensor | slice) -> "Fragments":
        """Some of the samples: a mask, indices or a slice."""
        parts = {name: getattr(self, name)[chosen] for name in ("index", "face", "weights", "depth")}
        return replace(self, **parts)

    @property
    def pixel(self) -> np.ndarray:
        """Position in the flattened image of the pixel that each sample belongs to."""
        row, column = np.divmod(self.index.numpy(), self.width * self.supersampling)
        return row // self.supersampling * self.width + column // self.supersampling

    def interpolate(self, mesh: Mesh, values: Float[Tensor, "v c"]) -> Float[Tensor, "n c"]:
        """Values of the vertices at the samples."""
        out = np.empty((len(self.face), values.shape[1]), np.float32)
        faces, face, weights = mesh.faces.numpy(), self.face.numpy(), self.weights.numpy()
        interpolate(np.ascontiguousarray(values.numpy(), np.float32), faces, face, weights, out)
        return torch.from_numpy(out)

    def grid(self, values: Tensor, fill: float | int) -> Tensor:
        """Values (n, ...) of the samples on the grid (H s, W s, ...), with a filler where nothing is seen."""
        rows, columns = self.height * self.supersampling, self.width * self.supersampling
        out = torch.full((rows * columns, *values.shape[1:]), fill, dtype=values.dtype)
        out[self.index] = values
        return out.unflatten(0, (rows, columns))


@dataclass(frozen=True)
class MeshOutput:
    """Pictures of a mesh.

    Args:
        rgb: color in [0, 1] over the background.
        depth: depth along the optical axis at the pixel's center, 0 where nothing is there.
        alpha: covered share of the pixel.
        face: face at the pixel's center, -1 where there is none.
    """

    rgb: Float[Tensor, "h w 3"]
    depth: Float[Tensor, "h w"]
    alpha: Float[Tensor, "h w"]
    face: Int[Tensor, "h w"]


def rasterize_mesh(mesh: Mesh, camera: Camera, supersampling: int = 3) -> Fragments:
    """Visible surface at a regular grid of samples. Faces that reach behind the camera are not drawn.

    Args:
        mesh: the mesh.
        camera: one camera, without batch dimensions.
        supersampling: samples per pixel along each axis; odd, so that one of them is the pixel's center.

    Raises:
        ValueError: if the camera is a batch or ``supersampling`` is even or below 1.
    """
    if camera.batch_shape:
        msg = f"A mesh is rendered by one camera at a time, got a batch {tuple(camera.batch_shape)}; index it."
        raise ValueError(msg)
    if supersampling < 1 or supersampling % 2 == 0:
        msg = f"supersampling has to be odd, so that a sample lies at the pixel's center, got {supersampling}."
        raise ValueError(msg)
    uv, z = camera.to(torch.float64).project(mesh.vertices.double())
    depth = z.numpy()
    nearness = np.where(depth > _NEAR, 1 / np.maximum(depth, _NEAR), 0.0)
    rows, columns = camera.height * supersampling, camera.width * supersampling
    best, owner, weights = _buffers(rows, columns)
    drawn = _facing(mesh, camera.center.float() - mesh.vertices)
    faces = mesh.faces.numpy()[drawn]
    scan(np.ascontiguousarray(uv.numpy() * supersampling), nearness, faces, best, owner, weights)
    index = np.flatnonzero(owner >= 0)
    last = weights.reshape(-1, 2)[index]
    return Fragments(
        index=torch.from_numpy(index),
        face=torch.from_numpy(drawn[owner.reshape(-1)[index]]),
        weights=torch.from_numpy(np.concatenate([1 - last.sum(1, keepdims=True), last], 1)),
        depth=torch.from_numpy((1 / best.reshape(-1)[index]).astype(np.float32)),
        width=camera.width,
        height=camera.height,
        supersampling=supersampling,
    )


def bake_light(mesh: Mesh, light: Light) -> BakedLight:
    """Light that reaches each vertex from a few dozen directions, each with an orthographic shadow map.

    Finer than the mesh's edges nothing is resolved: subdivide large faces first.

    Args:
        mesh: the mesh; casts and receives shadows.
        light: the light.
    """
    shadows = _Shadows(mesh)
    total = np.zeros((len(mesh.vertices), 3))
    sky = _spiral(_SKY_SAMPLES)
    upwards = (0.5 + 0.5 * sky[:, 2:]) * np.array(light.sky) + (0.5 - 0.5 * sky[:, 2:]) * np.array(light.ground)
    for direction, color in zip(sky, upwards, strict=True):
        total += shadows.received(direction)[:, None] * color * (4 / _SKY_SAMPLES)
    key, key_free = np.zeros(len(total)), np.zeros(len(total))
    for direction in _cone(light.key_direction, light.softness):
        key += shadows.received(direction) / _LAMP_SAMPLES
        key_free += np.maximum(shadows.normals @ direction, 0) / _LAMP_SAMPLES
    fill = sum(shadows.received(direction) / _LAMP_SAMPLES for direction in _cone(light.fill_direction, light.softness))
    total += key[:, None] * np.array(light.key) + np.asarray(fill)[:, None] * np.array(light.fill)
    visibility = key / np.maximum(key_free, 1e-6)
    return BakedLight(torch.from_numpy(total).float(), torch.from_numpy(visibility).float())


def shade(
    mesh: Mesh, fragments: Fragments, albedo: Float[Tensor, "n 3"], camera: Camera, light: Light, baked: BakedLight
) -> Float[Tensor, "n 3"]:
    """Display color of samples.

    Args:
        mesh: the mesh.
        fragments: the visible samples.
        albedo: their own color, usually ``fragments.interpolate(mesh, mesh.colors)``.
        camera: the camera that sees them.
        light: the light.
        baked: what ``bake_light`` made of it.
    """
    vertex = torch.cat([mesh.vertices, mesh.normals, baked.irradiance, baked.key_visibility[:, None]], 1)
    position, normal, irradiance, visibility = fragments.interpolate(mesh, vertex).split([3, 3, 3, 1], 1)
    towards_eye = camera.center.float() - position
    half = torch.nn.functional.normalize(towards_eye, dim=1) + _unit(light.key_direction)
    cosine = (normal * half).sum(1, keepdim=True) / (normal.norm(dim=1, keepdim=True) * half.norm(dim=1, keepdim=True))
    highlight = light.specular * visibility * cosine.clamp(0, 1) ** light.shininess
    linear = light.intensity * (albedo.square() * irradiance + highlight)
    return linear.clamp(0, 1).sqrt()


def resolve(
    fragments: Fragments, samples: Float[Tensor, "n 3"], background: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> MeshOutput:
    """Pixels from samples: colors are averaged, depth and face are those of the pixel's center.

    Args:
        fragments: the visible samples.
        samples: their colors.
        background: color where nothing is seen.
    """
    s = fragments.supersampling
    count = fragments.height * fragments.width
    sums = [np.bincount(fragments.pixel, channel, count) for channel in (*samples.numpy().T, np.ones(len(samples)))]
    pixels = torch.from_numpy(np.stack(sums, 1) / s**2).float().unflatten(0, (fragments.height, fragments.width))
    alpha = pixels[..., 3]
    rgb = pixels[..., :3] + (1 - alpha)[..., None] * torch.tensor(background)
    center = (slice(s // 2, None, s), slice(s // 2, None, s))
    return MeshOutput(
        rgb.clamp(0, 1), fragments.grid(fragments.depth, 0.0)[center], alpha, fragments.grid(fragments.face, -1)[center]
    )


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    light: Light | None = None,
    baked: BakedLight | None = None,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    supersampling: int = 3,
) -> MeshOutput:
    """Picture of a mesh.

    Args:
        mesh: the mesh.
        camera: one camera, without batch dimensions.
        light: the light; soft daylight if None.
        baked: ``bake_light(mesh, light)``, to spare its computation for each view.
        background: color where nothing is seen.
        supersampling: samples per pixel along each axis; odd.

    Raises:
        ValueError: if the camera is a batch or ``supersampling`` is even or below 1.
    """
    light = light or Light()
    fragments = rasterize_mesh(mesh, camera, supersampling)
    baked = baked or bake_light(mesh, light)
    albedo = fragments.interpolate(mesh, mesh.colors)
    return resolve(fragments, shade(mesh, fragments, albedo, camera, light, baked), background)


def _buffers(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    best = np.zeros((rows, columns))
    return best, np.full((rows, columns), -1, np.int32), np.zeros((rows, columns, 2), np.float32)


def _facing(mesh: Mesh, towards_eye: Tensor) -> np.ndarray:
    """Indices of the faces to draw: of solids, those with a normal that turns towards us."""
    if not mesh.closed:
        return np.arange(len(mesh.faces))
    in_front = ((mesh.normals * towards_eye).sum(1) > 0).numpy()
    return np.flatnonzero(_any_corner(in_front, mesh.faces.numpy()))


class _Shadows:
    """Shadow maps of a mesh, one direction at a time."""

    def __init__(self, mesh: Mesh) -> None:
        vertices, self.normals = mesh.vertices.numpy().astype(np.float64), mesh.normals.numpy().astype(np.float64)
        low, high = vertices.min(0), vertices.max(0)
        self.reach = max(float(np.linalg.norm(high - low)) / 2, 1e-9)
        self.texel = 2.1 * self.reach / _SHADOW_MAP
        self.points = vertices - (low + high) / 2
        # Two texels off the surface, a face does not shadow itself.
        self.lifted = self.points + 2 * self.texel * self.normals
        self.faces = mesh.faces.numpy()
        self.closed = mesh.closed

    def received(self, direction: np.ndarray) -> np.ndarray:
        """Cosine of the angle to a far lamp, zero in its shadow; (V,)."""
        cosine = self.normals @ direction
        faces = self.faces
        if self.closed:
            faces = faces[_any_corner(cosine > 0, faces)]
        best, owner, weights = _buffers(_SHADOW_MAP, _SHADOW_MAP)
        scan(*self._project(self.points, direction), faces, best, owner, weights)
        xy, nearness = self._project(self.lifted, direction)
        received = np.zeros(len(cosine))
        add_visible(xy, nearness + 0.5 * self.texel, cosine, best, received)
        return received

    def _project(self, points: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Texel (V, 2), and how near to the lamp (V,)."""
        across = np.stack(_basis(direction), 1)
        return points @ across / self.texel + _SHADOW_MAP / 2, points @ direction + 2 * self.reach


def _any_corner(vertex: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces (F,) with at least one of the vertices that are marked (V,)."""
    marked: np.ndarray = vertex[faces[:, 0]] | vertex[faces[:, 1]] | vertex[faces[:, 2]]
    return marked


def _unit(vector: tuple[float, float, float]) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(vector), dim=0)


def _basis(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors that span the plane across a unit vector."""
    across = np.cross(direction, np.eye(3)[int(np.abs(direction).argmin())])
    across /= np.linalg.norm(across)
    return across, np.cross(direction, across)


def _spiral(count: int) -> np.ndarray:
    """Evenly spread unit vectors (count, 3)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    azimuth = np.arange(count) * _GOLDEN_ANGLE
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], 1)


def _cone(direction: tuple[float, float, float], angle: float) -> np.ndarray:
    """Unit vectors evenly spread over a disc around a direction."""
    axis = np.array(direction) / np.linalg.norm(direction)
    across, down = _basis(axis)
    index = np.arange(_LAMP_SAMPLES)
    radius, azimuth = np.tan(angle) * np.sqrt((index + 0.5) / _LAMP_SAMPLES), index * _GOLDEN_ANGLE
    spread = axis + (radius * np.cos(azimuth))[:, None] * across + (radius * np.sin(azimuth))[:, None] * down
    return spread / np.linalg.norm(spread, axis=1, keepdims=True)
