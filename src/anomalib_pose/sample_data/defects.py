# SPDX-License-Identifier: Apache-2.0
"""The three kinds of defects of MAD (burrs, missing parts, stains), added to a toy where a camera sees them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.mesh import Fragments, rasterize_mesh, resolve
from anomalib_pose.render.mesh_lighting import BakedLight, Light, bake_light, shade
from anomalib_pose.sample_data.bricks import Part, Solid, join
from anomalib_pose.sample_data.toys import Toy, assemble

DEFECTS = ("Burrs", "Missing", "Stains")

_TRIES = 60
# Fractions of the image: smaller defects are invisible, larger ones change the toy as a whole.
_MIN_AREA, _MAX_AREA = 0.0012, 0.05
MIN_CONTRAST = 0.06
"""Smallest mean change of a defect's pixels, as a fraction of the value range, at which the defect is visible."""
_MIN_PIXELS = 5
_SAME_DEPTH, _SAME_COLOR = 1e-4, 1e-3
STAIN_COLORS = ((0.10, 0.07, 0.05), (0.07, 0.07, 0.08), (0.30, 0.17, 0.06), (0.16, 0.24, 0.08), (0.20, 0.08, 0.28))
"""Colors of stains, RGB in [0, 1]."""


@dataclass(frozen=True)
class ToyRendering:
    """Rendering of a good toy from one camera, with the intermediate results that defects reuse.

    Args:
        toy: toy without defects.
        camera: camera of the rendering.
        light: light of the scene.
        baked: baked light on the toy.
        fragments: visible samples.
        albedo: surface colors (n, 3) of the samples.
        samples: lit colors (n, 3) of the samples.
        baked_without: baked light on the toy without one part, by the part's number; renderings may share it.
    """

    toy: Toy
    camera: Camera
    light: Light
    baked: BakedLight
    fragments: Fragments
    albedo: Tensor
    samples: Tensor
    baked_without: dict[int, BakedLight] = field(default_factory=dict)

    @classmethod
    def render(
        cls,
        toy: Toy,
        camera: Camera,
        light: Light,
        baked: BakedLight,
        baked_without: dict[int, BakedLight] | None = None,
    ) -> "ToyRendering":
        """Render a toy; the arguments are those of the class."""
        fragments = rasterize_mesh(toy.mesh, camera)
        albedo = fragments.interpolate(toy.mesh, toy.mesh.colors)
        samples = shade(toy.mesh, fragments, albedo, camera, light, baked)
        return cls(
            toy, camera, light, baked, fragments, albedo, samples, {} if baked_without is None else baked_without
        )

    @property
    def image(self) -> np.ndarray:
        """Image (H, W, 3) uint8 on white."""
        return to_bytes(resolve(self.fragments, self.samples).rgb)


def to_bytes(rgb: Tensor) -> np.ndarray:
    """Convert colors in [0, 1] to uint8."""
    return (rgb * 255 + 0.5).to(torch.uint8).numpy()


def render_defect(rendering: ToyRendering, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Render the toy with a defect at a random visible place.

    The light on all other surfaces stays the same. So the mask is exact: outside the mask the images with and without
    defect are equal, inside they differ.

    Args:
        rendering: rendering of the good toy.
        kind: one of ``DEFECTS``.
        rng: random generator of the defect's place and shape.

    Returns:
        Image (H, W, 3) uint8 with the defect, and mask (H, W) bool of the pixels that it changes; None if no place for
        a defect of suitable size was found.
    """
    good = rendering.image
    pixels = good.shape[0] * good.shape[1]
    min_area, max_area = max(_MIN_PIXELS, _MIN_AREA * pixels), _MAX_AREA * pixels
    for _ in range(_TRIES):
        candidate = _KINDS[kind](rendering, rng)
        if candidate is None or not min_area <= candidate.area <= max_area:
            continue
        image = candidate.render()
        difference = np.abs(image.astype(np.int16) - good).max(2)
        mask = difference > 0
        if mask.sum() >= min_area and difference[mask].mean() >= 255 * MIN_CONTRAST:
            return image, mask
    return None


@dataclass(frozen=True)
class _DefectCandidate:
    """A possible defect: the number of pixels that it touches, and the function that renders its image."""

    area: int
    render: Callable[[], np.ndarray]


def _changed_surface(rendering: ToyRendering, toy: Toy, bake: Callable[[], BakedLight]) -> _DefectCandidate:
    """Make a candidate from a toy with a changed surface.

    The new toy is rendered where the surface or its color differs, the good toy elsewhere.

    Args:
        rendering: rendering of the good toy.
        toy: toy with the defect.
        bake: computes the light on the toy with the defect.
    """
    fragments = rasterize_mesh(toy.mesh, rendering.camera)
    albedo = fragments.interpolate(toy.mesh, toy.mesh.colors)
    good = rendering.fragments
    depth_change = (good.grid(good.depth, 0.0) - fragments.grid(fragments.depth, 0.0)).abs()
    color_change = (good.grid(rendering.albedo, 1.0) - fragments.grid(albedo, 1.0)).abs().amax(2)
    differs = (depth_change > _SAME_DEPTH) | (color_change > _SAME_COLOR)

    def render() -> np.ndarray:
        new_samples = shade(toy.mesh, fragments, albedo, rendering.camera, rendering.light, bake())
        unchanged = ~differs.flatten()[good.index]
        changed = differs.flatten()[fragments.index]
        samples = torch.cat([rendering.samples[unchanged], new_samples[changed]])
        return to_bytes(resolve(_concatenate(good[unchanged], fragments[changed]), samples).rgb)

    s = fragments.supersampling
    area = differs.unflatten(0, (-1, s)).unflatten(2, (-1, s)).any(3).any(1).sum()
    return _DefectCandidate(int(area), render)


def _concatenate(first: Fragments, second: Fragments) -> Fragments:
    """Join two sets of samples of one image."""
    return replace(
        first,
        index=torch.cat([first.index, second.index]),
        face=torch.cat([first.face, second.face]),
        weights=torch.cat([first.weights, second.weights]),
        depth=torch.cat([first.depth, second.depth]),
    )


def _visible_place(rendering: ToyRendering, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Choose a random visible sample; return its position, normal and part, or None at a grazing angle."""
    if not len(rendering.fragments.index):
        return None
    index = int(rng.integers(len(rendering.fragments.index)))
    sample = rendering.fragments[index : index + 1]
    mesh = rendering.toy.mesh
    position_normal = sample.interpolate(mesh, torch.cat([mesh.vertices, mesh.normals], 1)).double().numpy()[0]
    position, normal = position_normal[:3], position_normal[3:] / np.linalg.norm(position_normal[3:])
    to_camera = rendering.camera.center.double().numpy() - position
    if normal @ to_camera < 0.25 * np.linalg.norm(to_camera):
        return None
    return position, normal, int(rendering.toy.part[int(sample.face[0])])


def _missing(rendering: ToyRendering, rng: np.random.Generator) -> _DefectCandidate | None:
    """Remove one part."""
    place = _visible_place(rendering, rng)
    if place is None or not rendering.toy.parts[place[2]].removable:
        return None
    removed = place[2]
    toy = assemble([part for i, part in enumerate(rendering.toy.parts) if i != removed])

    def bake() -> BakedLight:
        if removed not in rendering.baked_without:
            rendering.baked_without[removed] = bake_light(toy.mesh, rendering.light)
        return rendering.baked_without[removed]

    return _changed_surface(rendering, toy, bake)


def _burrs(rendering: ToyRendering, rng: np.random.Generator) -> _DefectCandidate | None:
    """Add two to four jagged splinters to a surface, in about its color."""
    place = _visible_place(rendering, rng)
    if place is None:
        return None
    position, normal, part = place
    tangent = np.cross(normal, rng.normal(size=3))
    tangent /= np.linalg.norm(tangent)
    size = rng.uniform(0.05, 0.11)
    solids = []
    for offset in np.linspace(-1, 1, int(rng.integers(2, 5))):
        base = position + tangent * offset * size * rng.uniform(0.5, 0.8)
        direction = normal + 0.55 * rng.normal(size=3)
        solids.append(_splinter(base - 0.01 * normal, direction, size * rng.uniform(0.7, 1.4), size * 0.45, rng))
    burr = join(solids)
    color = np.clip(np.array(rendering.toy.parts[part].color) * rng.uniform(0.75, 0.95) + 0.06, 0, 1)
    toy = assemble([*rendering.toy.parts, Part(burr, (float(color[0]), float(color[1]), float(color[2])))])
    return _changed_surface(rendering, toy, lambda: _extend_light(rendering, toy))


def _extend_light(rendering: ToyRendering, toy: Toy) -> BakedLight:
    """Append unshadowed light on a toy's additional vertices to the baked light of the good toy."""
    good_count = len(rendering.toy.mesh.vertices)
    normals = toy.mesh.normals[good_count:]
    light = rendering.light

    def lamp(direction: tuple[float, float, float], color: tuple[float, float, float]) -> Tensor:
        unit = torch.nn.functional.normalize(torch.tensor(direction), dim=0)
        return (normals @ unit).clamp_min(0)[:, None] * torch.tensor(color)

    irradiance = torch.lerp(torch.tensor(light.ground), torch.tensor(light.sky), 0.5 + 0.5 * normals[:, 2:])
    irradiance = irradiance + lamp(light.key_direction, light.key) + lamp(light.fill_direction, light.fill)
    visibility = torch.ones(len(normals))
    return BakedLight(
        torch.cat([rendering.baked.irradiance, irradiance]), torch.cat([rendering.baked.key_visibility, visibility])
    )


def _splinter(base: np.ndarray, direction: np.ndarray, length: float, width: float, rng: np.random.Generator) -> Solid:
    """Build an irregular cone with flat sides."""
    axis = direction / np.linalg.norm(direction)
    first = np.cross(axis, np.eye(3)[int(np.abs(axis).argmin())])
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    sides = 6
    angle = 2 * np.pi * (np.arange(sides) + rng.uniform(-0.25, 0.25, sides)) / sides
    rings = []
    for height, radius in ((0.0, 1.0), (0.45, 0.7), (1.0, 0.12)):
        r = width * radius * rng.uniform(0.7, 1.2, sides)
        bend = base + axis * length * height + 0.15 * width * height * rng.normal(size=3)
        rings.append(bend + (r * np.cos(angle))[:, None] * first + (r * np.sin(angle))[:, None] * second)
    triangles = []
    for low, high in pairwise(rings):
        for i in range(sides):
            j = (i + 1) % sides
            triangles += [(low[i], low[j], high[j]), (low[i], high[j], high[i])]
    triangles += [(rings[-1][0], rings[-1][i], rings[-1][i + 1]) for i in range(1, sides - 1)]
    corners = np.array(triangles)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    faces = np.arange(3 * len(corners), dtype=np.int32).reshape(-1, 3)
    return Solid(corners.reshape(-1, 3), faces, np.repeat(normal, 3, 0))


def _stains(rendering: ToyRendering, rng: np.random.Generator) -> _DefectCandidate | None:
    """Add a blotch with a ragged edge: a texture in space that colors all surfaces inside it."""
    place = _visible_place(rendering, rng)
    if place is None:
        return None
    center, normal, _ = place
    radius = rng.uniform(0.08, 0.19)
    color = torch.tensor(STAIN_COLORS[int(rng.integers(len(STAIN_COLORS)))])
    strength = rng.uniform(0.75, 0.95)
    position = rendering.fragments.interpolate(rendering.toy.mesh, rendering.toy.mesh.vertices).double().numpy()
    local = (position - center) / radius
    local += 0.8 * normal * (local @ normal)[:, None]  # flatten it along the normal
    distance = np.linalg.norm(local, axis=1)
    near = np.flatnonzero(distance < 2)
    edge = (
        distance[near] + 0.3 * plane_wave_noise(local[near], rng, 2.0) + 0.12 * plane_wave_noise(local[near], rng, 6.0)
    )
    coverage = np.clip((1.05 - edge) / 0.25, 0, 1) * np.clip(
        0.85 + 0.25 * plane_wave_noise(local[near], rng, 4.0), 0, 1
    )
    weight = torch.zeros(len(position))
    weight[torch.from_numpy(near)] = torch.from_numpy(strength * coverage).float()
    area = len(np.unique(rendering.fragments.pixel[weight.numpy() > 0]))

    def render() -> np.ndarray:
        albedo = torch.lerp(rendering.albedo, color.expand_as(rendering.albedo), weight[:, None])
        samples = shade(
            rendering.toy.mesh, rendering.fragments, albedo, rendering.camera, rendering.light, rendering.baked
        )
        return to_bytes(resolve(rendering.fragments, samples).rgb)

    return _DefectCandidate(area, render)


def plane_wave_noise(position: np.ndarray, rng: np.random.Generator, frequency: float) -> np.ndarray:
    """Compute smooth noise of about unit amplitude: a sum of six plane waves in random directions.

    Args:
        position: points (n, d) in d dimensions.
        rng: random generator of directions and phases.
        frequency: standard deviation of the wave vectors' components, radians per unit of length.

    Returns:
        values (n,).
    """
    directions = rng.normal(size=(6, position.shape[1])) * frequency
    return np.sin(position @ directions.T + rng.uniform(0, 2 * np.pi, 6)).sum(1) / np.sqrt(3)


_KINDS: dict[str, Callable[[ToyRendering, np.random.Generator], _DefectCandidate | None]] = {
    "Burrs": _burrs,
    "Missing": _missing,
    "Stains": _stains,
}
