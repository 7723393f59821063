# SPDX-License-Identifier: Apache-2.0
"""Random chairs of parts that can be moved, cut, exchanged or removed; z up, lengths in meters before scaling."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.reference_views import FITTING_RADIUS
from anomalib_pose.sample_data.bricks import Solid, box, cylinder, join, subdivide

FRAME, COVER = 0, 1
"""Indices of the materials of parts."""

_CHAMFER = 0.006
_LONGEST_EDGE = 0.1


@dataclass(frozen=True)
class ChairPart:
    """One part of a chair.

    Args:
        role: type of the part, in the words of the published statistics: Leg, SeatSurface, BackSurface, Arm and so on.
        material: ``FRAME`` or ``COVER``.
        solids: convex solids of the part, at their places in the whole chair.
        rotation: rotation matrix (3, 3), about the center of the part.
        shift: translation (3,) after the rotation.
        cut: surface of a damaged part, which replaces the surfaces of its solids; None for other parts.
    """

    role: str
    material: int
    solids: tuple[Solid, ...]
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    shift: np.ndarray = field(default_factory=lambda: np.zeros(3))
    cut: Solid | None = None

    @property
    def surface(self) -> Solid:
        """Surface with edges short enough for baked light, before rotation and shift."""
        return self.cut or subdivide(join(list(self.solids)), _LONGEST_EDGE)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest coordinates, before rotation and shift."""
        points = np.concatenate([solid.vertices for solid in self.solids])
        return points.min(0), points.max(0)


@dataclass(frozen=True)
class Chair:
    """A chair as a mesh, with the part of each face and the texture position of each vertex.

    Args:
        parts: parts of the chair; None in place of a missing part.
        mesh: surface of the chair.
        face_part: index (F,) of each face's part.
        texture: position (V, 3), float32, of each vertex before its part's rotation and shift, for patterns.
    """

    parts: tuple[ChairPart | None, ...]
    mesh: Mesh
    face_part: np.ndarray
    texture: np.ndarray

    @classmethod
    def assemble(cls, parts: tuple[ChairPart | None, ...]) -> "Chair":
        """Assemble parts to a chair."""
        placed, textures, owners = [], [], []
        for number, part in enumerate(parts):
            if part is None:
                continue
            surface = part.surface
            low, high = part.bounds
            center = (low + high) / 2
            vertices = (surface.vertices - center) @ part.rotation.T + center + part.shift
            placed.append(Solid(vertices, surface.faces, surface.normals @ part.rotation.T))
            textures.append(surface.vertices)
            owners.append(np.full(len(surface.faces), number))
        surface = join(placed)
        mesh = Mesh(
            torch.from_numpy(surface.vertices).float(),
            torch.from_numpy(surface.faces),
            torch.ones(len(surface.vertices), 3),
            torch.from_numpy(surface.normals).float(),
            closed=True,
        )
        return cls(parts, mesh, np.concatenate(owners), np.concatenate(textures).astype(np.float32))

    def with_part(self, number: int, part: ChairPart | None) -> "Chair":
        """Return the chair with one part replaced, or removed if the new part is None."""
        return Chair.assemble((*self.parts[:number], part, *self.parts[number + 1 :]))


def build_chair(rng: np.random.Generator) -> Chair:
    """Build a random chair that fits into reference views, with the center of its bounding box at the origin.

    Args:
        rng: random generator of design and measures.
    """
    width, depth = rng.uniform(0.40, 0.56), rng.uniform(0.38, 0.50)
    height = rng.uniform(0.40, 0.48)
    thickness = rng.uniform(0.025, 0.08)
    half_width, half_depth = width / 2, depth / 2
    parts = [_seat(half_width, half_depth, height, thickness)]
    parts += _SUPPORTS[int(rng.integers(len(_SUPPORTS)))](rng, half_width, half_depth, height - thickness)
    tilt = rng.uniform(0.03, 0.22)
    back_height = rng.uniform(0.34, 0.56)
    back = _BACKS[int(rng.integers(len(_BACKS)))](rng, half_width, back_height)
    hinge = np.array([0.0, half_depth - 0.02, height])
    parts += [_transformed(part, _rotation_about_x(-tilt), hinge) for part in back]
    if rng.random() < 0.5:
        parts += _arms(rng, half_width, half_depth, height)
    return Chair.assemble(_normalized(parts))


def bar(start: np.ndarray, end: np.ndarray, breadth: float, *, thickness: float = 0.0) -> Solid:
    """Build a straight bar between two points: round, or with a rectangular profile if it has a thickness.

    Args:
        start: start point (3,).
        end: end point (3,).
        breadth: diameter, or the horizontal side of a rectangular profile.
        thickness: the other side of a rectangular profile; 0 for a round bar.
    """
    difference = end - start
    length = float(np.linalg.norm(difference))
    if thickness:
        solid = box((-breadth / 2, -thickness / 2, 0), (breadth / 2, thickness / 2, length), _CHAMFER)
    else:
        solid = cylinder((0, 0, 0), breadth / 2, length, sides=16)
    axis = difference / length
    horizontal = np.cross([0.0, 1.0, 0.0] if abs(axis[1]) < 0.9 else [0.0, 0.0, 1.0], axis)
    horizontal /= np.linalg.norm(horizontal)
    rotation = np.stack([horizontal, np.cross(axis, horizontal), axis], 1)
    return Solid(solid.vertices @ rotation.T + start, solid.faces, solid.normals @ rotation.T)


def scaled(solid: Solid, scale: np.ndarray, shift: np.ndarray) -> Solid:
    """Scale a solid along the axes, then shift it; normals stay perpendicular unit vectors."""
    normals = solid.normals / scale
    return Solid(solid.vertices * scale + shift, solid.faces, normals / np.linalg.norm(normals, axis=1, keepdims=True))


def _normalized(parts: list[ChairPart]) -> tuple[ChairPart, ...]:
    """Center and scale parts to fit into reference views."""
    points = np.concatenate([solid.vertices for part in parts for solid in part.solids])
    center = (points.min(0) + points.max(0)) / 2
    scale = np.full(3, FITTING_RADIUS / np.linalg.norm(points - center, axis=1).max())
    return tuple(
        replace(part, solids=tuple(scaled(solid, scale, -center * scale) for solid in part.solids)) for part in parts
    )


def _rotation_about_x(angle: float) -> np.ndarray:
    """Return the rotation matrix (3, 3) about x; the angle is in radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _transformed(part: ChairPart, rotation: np.ndarray, shift: np.ndarray) -> ChairPart:
    """Rotate the solids of a part about the origin, then shift them."""
    solids = (Solid(s.vertices @ rotation.T + shift, s.faces, s.normals @ rotation.T) for s in part.solids)
    return replace(part, solids=tuple(solids))


def _part(role: str, material: int, *solids: Solid) -> ChairPart:
    return ChairPart(role, material, solids)


def _seat(half_width: float, half_depth: float, height: float, thickness: float) -> ChairPart:
    return _part(
        "SeatSurface",
        COVER,
        box((-half_width, -half_depth, height - thickness), (half_width, half_depth, height), 0.015),
    )


def _four_legs(rng: np.random.Generator, half_width: float, half_depth: float, top: float) -> list[ChairPart]:
    """Build four legs, which may be splayed, with or without bars between them."""
    breadth = rng.uniform(0.03, 0.05)
    splay = rng.uniform(0.0, 0.08)
    thickness = breadth if rng.random() < 0.5 else 0.0
    inset = breadth / 2 + 0.01
    parts, feet = [], {}
    for x in (-1, 1):
        for y in (-1, 1):
            upper = np.array([x * (half_width - inset), y * (half_depth - inset), top])
            foot = np.array([x * (half_width - inset + splay), y * (half_depth - inset + splay), 0.0])
            feet[x, y] = (foot, upper)
            parts.append(_part("Leg", FRAME, bar(foot, upper, breadth, thickness=thickness)))
    if rng.random() < 0.5:
        height = rng.uniform(0.25, 0.5)

        def point_on_leg(x: int, y: int) -> np.ndarray:
            foot, upper = feet[x, y]
            point: np.ndarray = foot + height * (upper - foot)
            return point

        parts.append(_part("Footrest", FRAME, bar(point_on_leg(-1, -1), point_on_leg(1, -1), 0.7 * breadth)))
        parts += [
            _part("LegStretcher", FRAME, bar(point_on_leg(x, -1), point_on_leg(x, 1), 0.7 * breadth)) for x in (-1, 1)
        ]
    if rng.random() < 0.5:
        rim = rng.uniform(0.04, 0.07)
        sides = [
            box((-half_width + inset, y - 0.01, top - rim), (half_width - inset, y + 0.01, top))
            for y in (-half_depth + inset, half_depth - inset)
        ]
        parts += [_part("SeatFrame", FRAME, side) for side in sides]
    return parts


def _sled(rng: np.random.Generator, half_width: float, half_depth: float, top: float) -> list[ChairPart]:
    """Build two runners with posts, and a bar under the seat."""
    breadth = rng.uniform(0.025, 0.04)
    parts = []
    for x in (-half_width + 0.03, half_width - 0.03):
        corners = [
            np.array([x, y, z])
            for y, z in ((-half_depth + 0.03, top), (-half_depth, 0.02), (half_depth, 0.02), (half_depth - 0.03, top))
        ]
        parts.append(_part("Leg", FRAME, bar(corners[1], corners[0], breadth), bar(corners[2], corners[3], breadth)))
        parts.append(_part("SurfaceBase", FRAME, bar(corners[1], corners[2], breadth)))
    low = top - 0.03
    parts.append(
        _part(
            "SeatSupport",
            FRAME,
            bar(np.array([-half_width + 0.03, 0, low]), np.array([half_width - 0.03, 0, low]), 0.03),
        )
    )
    return parts


def _pedestal(rng: np.random.Generator, half_width: float, half_depth: float, top: float) -> list[ChairPart]:
    """Build a column on a star of feet."""
    count = int(rng.integers(4, 6))
    reach = min(half_width, half_depth) * rng.uniform(0.95, 1.15)
    hub = np.array([0, 0, 0.09])
    start = rng.uniform(0, 2 * np.pi)
    parts = [_part("SeatSupport", FRAME, cylinder((0, 0, 0.07), 0.03, top - 0.07))]
    for angle in start + 2 * np.pi * np.arange(count) / count:
        foot = np.array([reach * np.cos(angle), reach * np.sin(angle), 0.03])
        parts.append(
            _part("Leg", FRAME, bar(hub, foot, 0.045, thickness=0.03), cylinder((foot[0], foot[1], 0), 0.028, 0.05))
        )
    plate = 0.6 * min(half_width, half_depth)
    parts.append(_part("SeatFrame", FRAME, box((-plate, -plate, top - 0.02), (plate, plate, top), _CHAMFER)))
    return parts


def _panel(rng: np.random.Generator, half_width: float, back_height: float) -> list[ChairPart]:
    """Build a back in one piece, on two posts."""
    gap = rng.uniform(0.06, 0.14)
    thickness = rng.uniform(0.02, 0.06)
    narrow = half_width * rng.uniform(0.8, 1.0)
    panel = box((-narrow, -thickness / 2, gap), (narrow, thickness / 2, back_height), 0.012)
    posts = [
        bar(np.array([x, 0, -0.03]), np.array([x, 0, gap + 0.02]), 0.03, thickness=0.02)
        for x in (-0.6 * half_width, 0.6 * half_width)
    ]
    return [_part("BackSurface", COVER, panel), *(_part("BackSupport", FRAME, post) for post in posts)]


def _posts(half_width: float, back_height: float) -> list[ChairPart]:
    """Build the two upright posts of a back."""
    x = half_width - 0.02
    return [
        _part("BackFrame", FRAME, bar(np.array([s * x, 0, -0.03]), np.array([s * x, 0, back_height]), 0.032))
        for s in (-1, 1)
    ]


def _slats(rng: np.random.Generator, half_width: float, back_height: float) -> list[ChairPart]:
    """Build two posts, a rail at the top, and upright slats."""
    rail = box(
        (-half_width + 0.02, -0.014, back_height - 0.07), (half_width - 0.02, 0.014, back_height - 0.005), _CHAMFER
    )
    count = int(rng.integers(3, 6))
    positions = np.linspace(-half_width, half_width, count + 2)[1:-1]
    breadth = rng.uniform(0.02, 0.05)
    slats = [
        box((x - breadth / 2, -0.008, 0.0), (x + breadth / 2, 0.008, back_height - 0.06), _CHAMFER) for x in positions
    ]
    return [
        *_posts(half_width, back_height),
        _part("BackFrame", FRAME, rail),
        *(_part("BackSurface", COVER, slat) for slat in slats),
    ]


def _ladder(rng: np.random.Generator, half_width: float, back_height: float) -> list[ChairPart]:
    """Build two posts and horizontal rungs."""
    count = int(rng.integers(2, 5))
    breadth = rng.uniform(0.04, 0.08)
    heights = np.linspace(0.12, back_height - breadth, count)
    rungs = [box((-half_width + 0.02, -0.01, z), (half_width - 0.02, 0.01, z + breadth), _CHAMFER) for z in heights]
    return [*_posts(half_width, back_height), *(_part("BackSurface", COVER, rung) for rung in rungs)]


def _arms(rng: np.random.Generator, half_width: float, half_depth: float, height: float) -> list[ChairPart]:
    """Build an arm rest with its support on each side."""
    rise = rng.uniform(0.16, 0.24)
    parts = []
    for side in (-1, 1):
        x = side * (half_width + 0.01)
        front = np.array([x, -0.6 * half_depth, height - 0.03])
        support = bar(front, front + np.array([0, 0, rise]), 0.03, thickness=0.03)
        low, high = (x - 0.028, -0.75 * half_depth, height + rise - 0.03), (x + 0.028, half_depth, height + rise)
        parts.append(_part("Arm", FRAME, support, box(low, high, _CHAMFER)))
    return parts


_SUPPORTS = (_four_legs, _four_legs, _sled, _pedestal)
_BACKS = (_panel, _slats, _ladder)
