# SPDX-License-Identifier: Apache-2.0
"""MAD's three kinds of defects, made on a toy where a camera sees them."""

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
# Shares of the image: smaller defects are not seen, larger ones are another toy.
_LEAST_AREA, _LARGEST_AREA = 0.0012, 0.05
LEAST_CONTRAST = 0.06
"""Mean change of a defect's pixels, as a share of the range, below which it is not seen."""
_LEAST_PIXELS = 5
_SAME_DEPTH, _SAME_COLOR = 1e-4, 1e-3
STAIN_COLORS = ((0.10, 0.07, 0.05), (0.07, 0.07, 0.08), (0.30, 0.17, 0.06), (0.16, 0.24, 0.08), (0.20, 0.08, 0.28))
"""What stains are made of, RGB in [0, 1]."""


@dataclass(frozen=True)
class View:
    """A good toy as one camera sees it, with what is needed to draw it again.

    Args:
        toy: the toy.
        camera: the camera.
        light: the light.
        baked: the light on the toy.
        fragments: visible samples.
        albedo: (n, 3) their own colors.
        samples: (n, 3) their colors in the light.
        relit: light on the toy without a part, by the part's number; views may share it.
    """

    toy: Toy
    camera: Camera
    light: Light
    baked: BakedLight
    fragments: Fragments
    albedo: Tensor
    samples: Tensor
    relit: dict[int, BakedLight] = field(default_factory=dict)

    @classmethod
    def of(
        cls, toy: Toy, camera: Camera, light: Light, baked: BakedLight, relit: dict[int, BakedLight] | None = None
    ) -> "View":
        """See a toy."""
        fragments = rasterize_mesh(toy.mesh, camera)
        albedo = fragments.interpolate(toy.mesh, toy.mesh.colors)
        samples = shade(toy.mesh, fragments, albedo, camera, light, baked)
        return cls(toy, camera, light, baked, fragments, albedo, samples, {} if relit is None else relit)

    @property
    def image(self) -> np.ndarray:
        """Picture (H, W, 3) uint8 on white."""
        return to_bytes(resolve(self.fragments, self.samples).rgb)


def to_bytes(rgb: Tensor) -> np.ndarray:
    """Colors in [0, 1] as uint8."""
    return (rgb * 255 + 0.5).to(torch.uint8).numpy()


def spoil(view: View, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Picture (H, W, 3) uint8 of the toy with a defect, and mask (H, W) bool of the pixels that the defect changes.

    Everything else keeps its light, so the mask is exact: outside of it both pictures are equal, inside they differ.

    Args:
        view: the good toy.
        kind: one of ``DEFECTS``.
        rng: source of the defect's place and shape.

    Returns:
        None if no defect of a fair size was found in this view.
    """
    good = view.image
    pixels = good.shape[0] * good.shape[1]
    least, largest = max(_LEAST_PIXELS, _LEAST_AREA * pixels), _LARGEST_AREA * pixels
    for _ in range(_TRIES):
        candidate = _KINDS[kind](view, rng)
        if candidate is None or not least <= candidate.touched <= largest:
            continue
        image = candidate.draw()
        difference = np.abs(image.astype(np.int16) - good).max(2)
        mask = difference > 0
        if mask.sum() >= least and difference[mask].mean() >= 255 * LEAST_CONTRAST:
            return image, mask
    return None


@dataclass(frozen=True)
class _Candidate:
    """A possible defect: how many pixels it touches, and how to draw it."""

    touched: int
    draw: Callable[[], np.ndarray]


def _changed_solid(view: View, toy: Toy, bake: Callable[[], BakedLight]) -> _Candidate:
    """Toy with another surface: the new toy is drawn where the surface or its color differs, else the good one."""
    fragments = rasterize_mesh(toy.mesh, view.camera)
    albedo = fragments.interpolate(toy.mesh, toy.mesh.colors)
    old_depth, new_depth = view.fragments.grid(view.fragments.depth, 0.0), fragments.grid(fragments.depth, 0.0)
    old_color, new_color = view.fragments.grid(view.albedo, 1.0), fragments.grid(albedo, 1.0)
    differs = ((old_depth - new_depth).abs() > _SAME_DEPTH) | ((old_color - new_color).abs().amax(2) > _SAME_COLOR)

    def draw() -> np.ndarray:
        new = shade(toy.mesh, fragments, albedo, view.camera, view.light, bake())
        kept = ~differs.flatten()[view.fragments.index]
        changed = differs.flatten()[fragments.index]
        samples = torch.cat([view.samples[kept], new[changed]])
        return to_bytes(resolve(_concatenated(view.fragments[kept], fragments[changed]), samples).rgb)

    s = fragments.supersampling
    touched = differs.unflatten(0, (-1, s)).unflatten(2, (-1, s)).any(3).any(1).sum()
    return _Candidate(int(touched), draw)


def _concatenated(first: Fragments, second: Fragments) -> Fragments:
    return replace(
        first,
        index=torch.cat([first.index, second.index]),
        face=torch.cat([first.face, second.face]),
        weights=torch.cat([first.weights, second.weights]),
        depth=torch.cat([first.depth, second.depth]),
    )


def _seen_place(view: View, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Position, normal and part of a random visible sample that does not lie edge-on."""
    if not len(view.fragments.index):
        return None
    chosen = int(rng.integers(len(view.fragments.index)))
    one = view.fragments[chosen : chosen + 1]
    mesh = view.toy.mesh
    both = one.interpolate(mesh, torch.cat([mesh.vertices, mesh.normals], 1)).double().numpy()[0]
    position, normal = both[:3], both[3:] / np.linalg.norm(both[3:])
    towards_eye = view.camera.center.double().numpy() - position
    if normal @ towards_eye < 0.25 * np.linalg.norm(towards_eye):
        return None
    return position, normal, int(view.toy.part[int(one.face[0])])


def _missing(view: View, rng: np.random.Generator) -> _Candidate | None:
    """One piece is not there."""
    place = _seen_place(view, rng)
    if place is None or not view.toy.parts[place[2]].removable:
        return None
    gone = place[2]
    toy = assemble([part for i, part in enumerate(view.toy.parts) if i != gone])

    def bake() -> BakedLight:
        if gone not in view.relit:
            view.relit[gone] = bake_light(toy.mesh, view.light)
        return view.relit[gone]

    return _changed_solid(view, toy, bake)


def _burrs(view: View, rng: np.random.Generator) -> _Candidate | None:
    """A few jagged splinters stand out of a surface, in its color."""
    place = _seen_place(view, rng)
    if place is None:
        return None
    position, normal, owner = place
    along = np.cross(normal, rng.normal(size=3))
    along /= np.linalg.norm(along)
    size = rng.uniform(0.05, 0.11)
    solids = []
    for offset in np.linspace(-1, 1, int(rng.integers(2, 5))):
        base = position + along * offset * size * rng.uniform(0.5, 0.8)
        lean = normal + 0.55 * rng.normal(size=3)
        solids.append(_splinter(base - 0.01 * normal, lean, size * rng.uniform(0.7, 1.4), size * 0.45, rng))
    burr = join(solids)
    worn = np.clip(np.array(view.toy.parts[owner].color) * rng.uniform(0.75, 0.95) + 0.06, 0, 1)
    toy = assemble([*view.toy.parts, Part(burr, (float(worn[0]), float(worn[1]), float(worn[2])))])
    return _changed_solid(view, toy, lambda: _extended(view, toy))


def _extended(view: View, toy: Toy) -> BakedLight:
    """Light of the good toy, and light without shadows on what was added behind it."""
    known = len(view.toy.mesh.vertices)
    normals = toy.mesh.normals[known:]
    light = view.light

    def lamp(direction: tuple[float, float, float], color: tuple[float, float, float]) -> Tensor:
        towards = torch.nn.functional.normalize(torch.tensor(direction), dim=0)
        return (normals @ towards).clamp_min(0)[:, None] * torch.tensor(color)

    new = torch.lerp(torch.tensor(light.ground), torch.tensor(light.sky), 0.5 + 0.5 * normals[:, 2:])
    new = new + lamp(light.key_direction, light.key) + lamp(light.fill_direction, light.fill)
    visibility = torch.ones(len(normals))
    return BakedLight(torch.cat([view.baked.irradiance, new]), torch.cat([view.baked.key_visibility, visibility]))


def _splinter(base: np.ndarray, direction: np.ndarray, length: float, width: float, rng: np.random.Generator) -> Solid:
    """Irregular cone with flat sides."""
    axis = direction / np.linalg.norm(direction)
    across = np.cross(axis, np.eye(3)[int(np.abs(axis).argmin())])
    across /= np.linalg.norm(across)
    up = np.cross(axis, across)
    sides = 6
    angle = 2 * np.pi * (np.arange(sides) + rng.uniform(-0.25, 0.25, sides)) / sides
    rings = []
    for height, radius in ((0.0, 1.0), (0.45, 0.7), (1.0, 0.12)):
        r = width * radius * rng.uniform(0.7, 1.2, sides)
        bend = base + axis * length * height + 0.15 * width * height * rng.normal(size=3)
        rings.append(bend + (r * np.cos(angle))[:, None] * across + (r * np.sin(angle))[:, None] * up)
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


def _stains(view: View, rng: np.random.Generator) -> _Candidate | None:
    """A blotch with a ragged edge, a texture in space that colors every surface it meets."""
    place = _seen_place(view, rng)
    if place is None:
        return None
    center, normal, _ = place
    radius = rng.uniform(0.08, 0.19)
    color = torch.tensor(STAIN_COLORS[int(rng.integers(len(STAIN_COLORS)))])
    strength = rng.uniform(0.75, 0.95)
    position = view.fragments.interpolate(view.toy.mesh, view.toy.mesh.vertices).double().numpy()
    local = (position - center) / radius
    local += 0.8 * normal * (local @ normal)[:, None]  # thin: it does not run down far
    distance = np.linalg.norm(local, axis=1)
    near = np.flatnonzero(distance < 2)
    edge = distance[near] + 0.3 * waves(local[near], rng, 2.0) + 0.12 * waves(local[near], rng, 6.0)
    cover = np.clip((1.05 - edge) / 0.25, 0, 1) * np.clip(0.85 + 0.25 * waves(local[near], rng, 4.0), 0, 1)
    weight = torch.zeros(len(position))
    weight[torch.from_numpy(near)] = torch.from_numpy(strength * cover).float()
    touched = len(np.unique(view.fragments.pixel[weight.numpy() > 0]))

    def draw() -> np.ndarray:
        albedo = torch.lerp(view.albedo, color.expand_as(view.albedo), weight[:, None])
        samples = shade(view.toy.mesh, view.fragments, albedo, view.camera, view.light, view.baked)
        return to_bytes(resolve(view.fragments, samples).rgb)

    return _Candidate(touched, draw)


def waves(position: np.ndarray, rng: np.random.Generator, frequency: float) -> np.ndarray:
    """Smooth noise of about unit size: a sum of plane waves in random directions.

    Args:
        position: (n, d) points of a plane or of space.
        rng: source of directions and phases.
        frequency: typical phase that a step of 1 adds, radians.

    Returns:
        (n,) values.
    """
    directions = rng.normal(size=(6, position.shape[1])) * frequency
    return np.sin(position @ directions.T + rng.uniform(0, 2 * np.pi, 6)).sum(1) / np.sqrt(3)


_KINDS: dict[str, Callable[[View, np.random.Generator], _Candidate | None]] = {
    "Burrs": _burrs,
    "Missing": _missing,
    "Stains": _stains,
}
