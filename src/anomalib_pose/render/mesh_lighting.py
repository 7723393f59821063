# SPDX-License-Identifier: Apache-2.0
"""Lighting of meshes: soft daylight with baked shadows, shading of samples, and ``render_mesh``.

Light is computed on squared colors (a gamma of 2).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.mesh import (
    Fragments,
    Mesh,
    MeshOutput,
    depth_buffers,
    faces_with_marked_vertices,
    rasterize_mesh,
    resolve,
)
from anomalib_pose.render.mesh_kernels import add_visible, rasterize_triangles

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
_SHADOW_MAP_SIZE = 320
_SKY_SAMPLES, _LAMP_SAMPLES = 48, 9


@dataclass(frozen=True)
class Light:
    """Soft daylight, fixed in the world: a hemisphere of sky and ground, and two lamps with soft shadows.

    Args:
        sky: color and strength of the light from +z.
        ground: color and strength of the light from -z; directions between +z and -z get a mixture of sky and ground.
        key_direction: direction towards the main lamp, of any length.
        key: color and strength of the main lamp.
        fill_direction: direction towards the second lamp, of any length.
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
    """Light at the vertices of a mesh, with shadows, without ``Light.intensity``.

    Args:
        irradiance: light that reaches each vertex, per color channel.
        key_visibility: unoccluded fraction of the main lamp at each vertex, in [0, 1].
    """

    irradiance: Float[Tensor, "v 3"]
    key_visibility: Float[Tensor, " v"]


def bake_light(mesh: Mesh, light: Light) -> BakedLight:
    """Compute the light that reaches each vertex from 66 directions, each with an orthographic shadow map.

    Shadows are not resolved below the length of the mesh's edges: subdivide large faces first.

    Args:
        mesh: mesh that casts and receives shadows.
        light: light of the scene.
    """
    shadow_maps = _ShadowMaps(mesh)
    total = np.zeros((len(mesh.vertices), 3))
    directions = _spiral_directions(_SKY_SAMPLES)
    up_weight = 0.5 + 0.5 * directions[:, 2:]
    sky_colors = up_weight * np.array(light.sky) + (0.5 - 0.5 * directions[:, 2:]) * np.array(light.ground)
    for direction, color in zip(directions, sky_colors, strict=True):
        total += shadow_maps.irradiance(direction)[:, None] * color * (4 / _SKY_SAMPLES)
    key, key_unoccluded = np.zeros(len(total)), np.zeros(len(total))
    for direction in _cone_directions(light.key_direction, light.softness):
        key += shadow_maps.irradiance(direction) / _LAMP_SAMPLES
        key_unoccluded += np.maximum(shadow_maps.normals @ direction, 0) / _LAMP_SAMPLES
    fill = sum(
        shadow_maps.irradiance(direction) / _LAMP_SAMPLES
        for direction in _cone_directions(light.fill_direction, light.softness)
    )
    total += key[:, None] * np.array(light.key) + np.asarray(fill)[:, None] * np.array(light.fill)
    visibility = key / np.maximum(key_unoccluded, 1e-6)
    return BakedLight(torch.from_numpy(total).float(), torch.from_numpy(visibility).float())


def shade(
    mesh: Mesh, fragments: Fragments, albedo: Float[Tensor, "n 3"], camera: Camera, light: Light, baked: BakedLight
) -> Float[Tensor, "n 3"]:
    """Compute the display colors of samples (Blinn-Phong highlight of the main lamp, diffuse light of all).

    Args:
        mesh: rasterized mesh.
        fragments: visible samples of the mesh.
        albedo: colors of the surface at the samples, usually ``fragments.interpolate(mesh, mesh.colors)``.
        camera: camera that the samples were rasterized with.
        light: light of the scene.
        baked: ``bake_light(mesh, light)``.
    """
    vertex = torch.cat([mesh.vertices, mesh.normals, baked.irradiance, baked.key_visibility[:, None]], 1)
    position, normal, irradiance, visibility = fragments.interpolate(mesh, vertex).split([3, 3, 3, 1], 1)
    to_camera = camera.center.float() - position
    halfway = torch.nn.functional.normalize(to_camera, dim=1) + _normalized(light.key_direction)
    lengths = normal.norm(dim=1, keepdim=True) * halfway.norm(dim=1, keepdim=True)
    cosine = (normal * halfway).sum(1, keepdim=True) / lengths
    highlight = light.specular * visibility * cosine.clamp(0, 1) ** light.shininess
    linear = light.intensity * (albedo.square() * irradiance + highlight)
    return linear.clamp(0, 1).sqrt()


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    light: Light | None = None,
    baked: BakedLight | None = None,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    supersampling: int = 3,
) -> MeshOutput:
    """Render a lit mesh.

    Args:
        mesh: mesh to render.
        camera: one camera, without batch dimensions.
        light: light of the scene; ``Light()`` if None.
        baked: ``bake_light(mesh, light)``, if it is already computed.
        background: color in [0, 1] of pixels beside the mesh.
        supersampling: samples per pixel along each axis; odd.

    Raises:
        ValueError: if the camera is a batch or ``supersampling`` is even or below 1.
    """
    light = light or Light()
    fragments = rasterize_mesh(mesh, camera, supersampling)
    baked = baked or bake_light(mesh, light)
    albedo = fragments.interpolate(mesh, mesh.colors)
    return resolve(fragments, shade(mesh, fragments, albedo, camera, light, baked), background)


class _ShadowMaps:
    """Orthographic shadow maps of a mesh, one direction at a time."""

    def __init__(self, mesh: Mesh) -> None:
        vertices, self.normals = mesh.vertices.numpy().astype(np.float64), mesh.normals.numpy().astype(np.float64)
        low, high = vertices.min(0), vertices.max(0)
        self.reach = max(float(np.linalg.norm(high - low)) / 2, 1e-9)
        self.texel = 2.1 * self.reach / _SHADOW_MAP_SIZE
        self.points = vertices - (low + high) / 2
        # Points two texels off the surface, where a face does not shadow itself.
        self.offset_points = self.points + 2 * self.texel * self.normals
        self.faces = mesh.faces.numpy()
        self.closed = mesh.closed

    def irradiance(self, direction: np.ndarray) -> np.ndarray:
        """Compute the irradiance (V,) by a distant lamp of strength 1: the cosine to the normal, 0 in shadow."""
        cosine = self.normals @ direction
        faces = self.faces
        if self.closed:
            faces = faces[faces_with_marked_vertices(cosine > 0, faces)]
        best, owner, weights = depth_buffers(_SHADOW_MAP_SIZE, _SHADOW_MAP_SIZE)
        rasterize_triangles(*self._project(self.points, direction), faces, best, owner, weights)
        xy, nearness = self._project(self.offset_points, direction)
        irradiance = np.zeros(len(cosine))
        add_visible(xy, nearness + 0.5 * self.texel, cosine, best, irradiance)
        return irradiance

    def _project(self, points: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return texels (V, 2) and nearness to the lamp (V,)."""
        basis = np.stack(_perpendicular_basis(direction), 1)
        return points @ basis / self.texel + _SHADOW_MAP_SIZE / 2, points @ direction + 2 * self.reach


def _normalized(vector: tuple[float, float, float]) -> Tensor:
    """Return a vector as a unit tensor (3,)."""
    return torch.nn.functional.normalize(torch.tensor(vector), dim=0)


def _perpendicular_basis(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two orthogonal unit vectors in the plane perpendicular to a unit vector."""
    first = np.cross(direction, np.eye(3)[int(np.abs(direction).argmin())])
    first /= np.linalg.norm(first)
    return first, np.cross(direction, first)


def _spiral_directions(count: int) -> np.ndarray:
    """Return evenly distributed unit vectors (count, 3) on a Fibonacci spiral."""
    z = 1 - (2 * np.arange(count) + 1) / count
    azimuth = np.arange(count) * _GOLDEN_ANGLE
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], 1)


def _cone_directions(direction: tuple[float, float, float], angle: float) -> np.ndarray:
    """Return unit vectors (9, 3), evenly distributed over a disc around a direction."""
    axis = np.array(direction) / np.linalg.norm(direction)
    first, second = _perpendicular_basis(axis)
    index = np.arange(_LAMP_SAMPLES)
    radius, azimuth = np.tan(angle) * np.sqrt((index + 0.5) / _LAMP_SAMPLES), index * _GOLDEN_ANGLE
    vectors = axis + (radius * np.cos(azimuth))[:, None] * first + (radius * np.sin(azimuth))[:, None] * second
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
