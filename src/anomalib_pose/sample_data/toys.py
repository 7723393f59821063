# SPDX-License-Identifier: Apache-2.0
"""Toys built of bricks: a car, a house and a rocket, in many variants."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from anomalib_pose.render.mesh import Mesh
from anomalib_pose.sample_data.bricks import (
    PLATE,
    Color,
    Part,
    Solid,
    box,
    brick,
    cylinder,
    join,
    prism,
    revolve,
    subdivide,
)

# MAD's objects lie in the cube |x| < 1.1, and its cameras at a distance of 3 to 4 units.
TOY_RADIUS = 1.1
_LONGEST_EDGE = 0.07
_TINT = 0.03

_RED, _BLUE, _YELLOW = (0.78, 0.10, 0.09), (0.10, 0.28, 0.66), (0.96, 0.76, 0.10)
_GREEN, _ORANGE, _WHITE = (0.16, 0.50, 0.22), (0.93, 0.48, 0.11), (0.92, 0.92, 0.90)
_BLACK, _DARK, _GRAY = (0.13, 0.13, 0.14), (0.34, 0.35, 0.37), (0.64, 0.65, 0.67)
_GLASS, _BROWN, _TAN = (0.66, 0.79, 0.88), (0.40, 0.24, 0.13), (0.85, 0.76, 0.55)


@dataclass(frozen=True)
class Toy:
    """A toy as a mesh, with the part of each face.

    Args:
        mesh: surface; the center of its bounding box is the origin.
        part: index (F,) of each face's part.
        parts: parts of the toy, in units of the mesh.
    """

    mesh: Mesh
    part: np.ndarray
    parts: tuple[Part, ...]


def build_toy(category: str, seed: int) -> Toy:
    """Build the toy of a category; equal names and seeds give equal toys.

    Args:
        category: "car", "house", "rocket", or another name for one of the three.
        seed: seed of colors and details, and of the kind for other names.
    """
    rng = np.random.default_rng([seed, zlib.crc32(category.encode())])
    kinds = sorted(_KINDS)
    kind = category if category in _KINDS else kinds[int(rng.integers(len(kinds)))]
    parts = _KINDS[kind](rng)
    vertices = join([part.solid for part in parts]).vertices
    low, high = vertices.min(0), vertices.max(0)
    center = (low + high) / 2
    scale = TOY_RADIUS / np.linalg.norm(vertices - center, axis=1).max()
    scaled_parts = []
    for part in parts:
        solid = replace(part.solid, vertices=(part.solid.vertices - center) * scale)
        tint = 1 + rng.uniform(-_TINT, _TINT)
        red, green, blue = (min(1.0, channel * tint) for channel in part.color)
        scaled_parts.append(Part(subdivide(solid, _LONGEST_EDGE), (red, green, blue), part.removable))
    return assemble(scaled_parts)


def assemble(parts: list[Part]) -> Toy:
    """Assemble parts to a toy, without moving them."""
    solid = join([part.solid for part in parts])
    color = np.concatenate([np.tile(part.color, (len(part.solid.vertices), 1)) for part in parts])
    owner = np.repeat(np.arange(len(parts)), [len(part.solid.faces) for part in parts])
    mesh = Mesh(
        torch.from_numpy(solid.vertices).float(),
        torch.from_numpy(solid.faces),
        torch.from_numpy(color).float(),
        torch.from_numpy(solid.normals).float(),
        closed=True,
    )
    return Toy(mesh, owner, tuple(parts))


def _pick(rng: np.random.Generator, colors: list[Color], count: int) -> list[Color]:
    """Choose different colors at random."""
    return [colors[i] for i in rng.choice(len(colors), count, replace=False)]


def _car(rng: np.random.Generator) -> list[Part]:
    body, accent = _pick(rng, [_RED, _BLUE, _YELLOW, _GREEN, _ORANGE, _WHITE], 2)
    roof = _pick(rng, [body, _BLACK, _WHITE], 1)[0]
    parts = [Part(brick(0, 1, 1.5, 13, 4, 1.5), _DARK, removable=False)]
    for x in (2.9, 10.1):
        for y, outwards in ((0.0, -1), (6.0, 1)):
            parts += _wheel(x, y, outwards)
    for y in (0, 3):
        parts += [
            Part(brick(0, y, 3, 1, 3), accent),
            Part(brick(5, y, 3, 3, 3), body),
            Part(brick(12, y, 3, 1, 3), accent),
            Part(brick(0, y, 6, 4, 3, 2), body),
            Part(brick(4, y, 6, 5, 3, 2), body),
            Part(brick(9, y, 6, 4, 3, 2), body),
            Part(brick(0, y, 8, 4, 3, 1), accent if y == 0 else body),
            Part(brick(9.6, y, 8, 3, 3, 1), body),
        ]
    parts += [Part(brick(1, 1, 3, 4, 4), _BLACK, removable=False), Part(brick(8, 1, 3, 4, 4), _BLACK, removable=False)]
    parts += [Part(brick(-0.6, y, 2, 1, 2, 1), _BLACK) for y in (0.5, 3.5)]
    parts += [Part(brick(12.6, 0.5, 2, 1, 5, 1), _BLACK)]
    for y in (0.9, 5.1):
        parts.append(Part(cylinder((0, y, 2.75), 0.6, -0.3, "x"), _YELLOW))
        parts.append(Part(cylinder((13, y, 2.75), 0.5, 0.25, "x"), _RED if body != _RED else _ORANGE))
    parts.append(Part(box((-0.15, 1.9, 2.5), (0.2, 4.1, 3.0)), _GRAY))
    parts.append(Part(box((12.9, 2.3, 1.6), (13.12, 3.7, 2.2)), _WHITE))
    glass = [(4.1, 3.2), (9.6, 3.2), (9.1, 5.6), (5.4, 5.6)]
    parts.append(Part(prism(glass, 0.4, 5.6), _GLASS, removable=False))
    for y in (0.2, 5.3):
        parts.append(Part(box((7.0, y, 3.2), (7.6, y + 0.5, 5.6)), body))
        parts.append(Part(box((5.2, y, 3.2), (9.4, y + 0.5, 3.6)), accent))
    parts += [Part(brick(5, 0, 14, 3, 6, 1), roof), Part(brick(8, 0, 14, 2, 6, 1), roof)]
    parts += [Part(box((5.6, y, 2.7), (6.2, y + 0.22, 2.9)), _BLACK) for y in (-0.12, 5.9)]
    extra = int(rng.integers(3))
    if extra == 0:
        parts += [Part(brick(11, y, 9, 1, 1, 2), _BLACK) for y in (0.5, 4.5)] + [
            Part(brick(11, 0, 11, 2, 6, 1), accent)
        ]
    elif extra == 1:
        parts += [Part(brick(6, 1, 15, 1, 4, 1, studs=False), _WHITE)]
        parts += [Part(cylinder((6.5, y, 6.4), 0.5, 0.7), color) for y, color in ((1.7, _BLUE), (4.3, _RED))]
    else:
        parts += [Part(brick(6, 1, 15, 2, 2, 2), accent), Part(brick(6, 3, 15, 2, 1, 1), _TAN)]
    return parts


def _wheel(x: float, y: float, outwards: int) -> list[Part]:
    """Build a tire with treads, hub and cap; its outer side protrudes slightly from the body."""
    height = 1.25
    width = 1.15
    start = y - outwards * (width - 0.15)
    angle = np.linspace(0, 2 * np.pi, 18, endpoint=False)
    rim = [(0.0, 0.0), (1.0, 0.0), (1.15, 0.12), (1.15, width - 0.12), (1.0, width), (0.75, width), (0.7, width - 0.2)]
    tire = revolve([*rim, (0.0, width - 0.2)], (0, 0, 0), "y", 30)
    low, high = (-0.09, 0.12, 1.08), (0.09, width - 0.12, 1.25)
    treads = []
    for a in angle:
        tread = box(low, high, 0.03)
        rotation = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        treads.append(Solid(tread.vertices @ rotation.T, tread.faces, tread.normals @ rotation.T))
    hub = join([cylinder((0, width - 0.25, 0), 0.55, 0.18, "y"), cylinder((0, width - 0.1, 0), 0.22, 0.14, "y", 16)])

    def placed(solid: Solid) -> Solid:
        flip = np.array([1.0, outwards, 1.0])
        return Solid(solid.vertices * flip + np.array([x, start, height]), solid.faces, solid.normals * flip)

    return [Part(placed(join([tire, *treads])), _BLACK), Part(placed(hub), _GRAY)]


def _house(rng: np.random.Generator) -> list[Part]:
    wall, roof, trim = (_pick(rng, colors, 1)[0] for colors in _HOUSE_COLORS)
    parts = [Part(brick(0, 0, 0, 12, 10, 1), _GREEN, removable=False)]
    for layer in range(4):
        parts += _wall_layer(1 + 3 * layer, layer, wall if layer else _GRAY)
    parts.append(Part(box((2.2, 2.2, 0.5), (9.8, 7.8, 5.1)), _DARK, removable=False))
    parts += _front(trim)
    parts.append(Part(brick(1.5, 1.5, 13, 9, 7, 1, studs=False), trim, removable=False))
    for row in range(3):
        z = 14 * PLATE + row * 1.2
        y = 1.0 + row * 1.33
        for x, length in ((1.2, 4.8), (6.0, 4.8)) if row % 2 == 0 else ((1.2, 3.2), (4.4, 3.2), (7.6, 3.2)):
            slope = [(y, z), (y + 1.75, z + 1.2), (5.0, z + 1.2), (5.0, z)]
            for polygon in (slope, [(10 - a, b) for a, b in slope]):
                parts.append(Part(prism(polygon, x + 0.02, x + length - 0.02, "x"), roof))
    parts += [Part(brick(x, 4.5, 23, 2, 1, 1), roof) for x in (1, 3, 5, 7, 9)]
    chimney = 3 if rng.integers(2) else 8
    parts += [Part(brick(chimney, 6, z, 1, 1), color) for z, color in ((17, _DARK), (20, _RED), (23, _RED))]
    parts.append(Part(brick(chimney, 6, 26, 1, 1, 1), _BLACK))
    parts += _garden(rng)
    return parts


_HOUSE_COLORS: tuple[list[Color], ...] = ([_WHITE, _YELLOW, _TAN, _ORANGE], [_RED, _BLUE, _DARK], [_BROWN, _BLUE, _RED])


def _wall_layer(z: int, layer: int, color: Color) -> list[Part]:
    """Build one course of the four walls, with shifted joints and an opening for the front door."""
    shift = layer % 2
    parts = []
    for y in (2, 7):
        cuts = [2, 4, 6, 8, 10] if shift else [2, 3, 5, 7, 9, 10]
        for start, end in pairwise(cuts):
            door = y == 2 and layer < 3 and start < 6 and end > 4
            if not door:
                parts.append(Part(brick(start, y, z, end - start, 1), color))
            elif start < 4:
                parts.append(Part(brick(start, y, z, 4 - start, 1), color))
            elif end > 6:
                parts.append(Part(brick(6, y, z, end - 6, 1), color))
    for x in (2, 9):
        cuts = [3, 5, 7] if shift else [3, 4, 6, 7]
        parts += [Part(brick(x, start, z, 1, end - start), color) for start, end in pairwise(cuts)]
    return parts


def _front(trim: Color) -> list[Part]:
    """Build door, windows and shutters on the outer sides of the walls."""
    parts = [
        Part(box((4.05, 2.15, 0.42), (5.95, 2.7, 3.95)), trim),
        Part(cylinder((5.6, 2.15, 2.1), 0.14, -0.2, "y", 12), _YELLOW),
        Part(brick(4, 1, 1, 2, 1, 1), _GRAY),
    ]
    for x, y, side in ((7.4, 1.86, -1.0), (4.2, 8.14, 1.0), (7.4, 8.14, 1.0)):
        near, far = sorted((y, y - side * 0.3))
        parts.append(Part(box((x, near, 2.1), (x + 1.6, far, 3.8)), _WHITE))
        near, far = sorted((y + side * 0.06, y - side * 0.3))
        parts.append(Part(box((x + 0.2, near, 2.3), (x + 0.72, far, 3.6), 0.02), _GLASS))
        parts.append(Part(box((x + 0.88, near, 2.3), (x + 1.4, far, 3.6), 0.02), _GLASS))
        parts += [Part(box((x + d, near, 2.1), (x + d + 0.5, far, 3.8)), trim) for d in (-0.55, 1.65)]
    for x, side in ((1.86, -1.0), (10.14, 1.0)):
        near, far = sorted((x, x - side * 0.3))
        parts.append(Part(box((near, 4.1, 2.1), (far, 5.9, 3.8)), _WHITE))
        near, far = sorted((x + side * 0.06, x - side * 0.3))
        parts += [Part(box((near, y, 2.3), (far, y + 0.65, 3.6), 0.02), _GLASS) for y in (4.3, 5.05)]
    return parts


def _garden(rng: np.random.Generator) -> list[Part]:
    """Build a tree in one corner, flowers and a path."""
    x = 0.0 if rng.integers(2) else 10.0
    parts = [Part(cylinder((x + 1, 1, PLATE), 0.35, 1.6), _BROWN)]
    crown = [(0.0, 0.0), (1.0, 0.0), (0.75, 0.9), (0.62, 0.9), (0.4, 1.7), (0.3, 1.7), (0.0, 2.5)]
    parts.append(Part(revolve(crown, (x + 1, 1, 1.9)), (0.10, 0.38, 0.16)))
    parts.append(Part(brick(4, 0, 1, 2, 1, 1, studs=False), _TAN))
    flowers = [(11 - x, 0.5), (11 - x, 2.5), (0.5, 6.5), (11.5, 7.5), (2.5, 9.5), (8.5, 9.5)]
    for flower, (fx, fy) in enumerate(flowers):
        color = (_RED, _YELLOW, _WHITE)[(flower + int(rng.integers(3))) % 3]
        parts.append(Part(cylinder((fx, fy, PLATE), 0.12, 0.7, sides=10), _GREEN))
        parts.append(Part(cylinder((fx, fy, PLATE + 0.65), 0.38, 0.25, sides=12), color))
    return parts


def _rocket(rng: np.random.Generator) -> list[Part]:
    hull, stripe, fin = _pick(rng, [_RED, _BLUE, _ORANGE, _WHITE, _YELLOW], 3)
    parts = [Part(brick(-4, -4, 0, 8, 8, 1), _DARK, removable=False)]
    parts += [Part(brick(x, y, 1, 1, 1, 3), _GRAY) for x in (-2, 1) for y in (-2, 1)]
    bell = [(0.0, 0.1), (0.5, 0.1), (1.15, 0.0), (1.25, 0.05), (0.7, 1.3), (0.0, 1.3)]
    parts.append(Part(revolve(bell, (0, 0, 0.5)), _BLACK))
    parts.append(Part(brick(-2, -2, 4, 4, 4, 1), _GRAY, removable=False))
    z = 5 * PLATE
    for course, color in enumerate((hull, hull, stripe, hull, stripe, hull)):
        parts += _round_course(z, 1.95 if course < 5 else 1.75, color)
        z += 1.2
    nose = [(0.0, 0.0), (1.7, 0.0), (1.6, 0.6), (1.35, 1.3), (0.95, 2.0), (0.5, 2.5), (0.25, 2.6), (0.0, 2.6)]
    parts.append(Part(revolve(nose, (0, 0, z + 0.02), sides=32), stripe))
    parts.append(Part(cylinder((0, 0, z + 2.6), 0.12, 1.1, sides=12), _GRAY))
    parts.append(Part(cylinder((0, 0, z + 3.6), 0.25, 0.4, sides=16), _RED))
    outline = [(1.7, 5.0), (1.7, 1.9), (3.5, 0.6), (3.5, 2.0)]
    # The fins differ in color: with equal fins the rocket would look the same from four sides.
    parts.append(Part(prism(outline, -0.3, 0.3), fin))
    parts.append(Part(prism([(-a, b) for a, b in outline], -0.3, 0.3), stripe if stripe != hull else _DARK))
    parts.append(Part(prism(outline, -0.3, 0.3, "x"), _DARK))
    parts.append(Part(prism([(-a, b) for a, b in outline], -0.3, 0.3, "x"), fin))
    for height in (4.9, 7.3):
        parts.append(Part(cylinder((0, -1.7, height), 0.85, -0.45, "y"), _GRAY))
        parts.append(Part(cylinder((0, -1.7, height), 0.6, -0.52, "y"), _GLASS))
    parts.append(Part(box((1.7, -0.8, 4.6), (2.1, 0.8, 7.0)), _YELLOW if hull != _YELLOW else _BLUE))
    parts.append(Part(cylinder((2.1, 0.5, 5.7), 0.16, 0.15, "x", 12), _BLACK))
    parts += _tower(rng)
    return parts


def _round_course(z: float, radius: float, color: Color) -> list[Part]:
    """Build a course of the round body, with a rib at each quarter."""
    ring = cylinder((0, 0, z), radius, 1.14, sides=40)
    ribs = []
    for a in np.pi / 4 + np.pi / 2 * np.arange(4):
        c, s = np.cos(a) * radius, np.sin(a) * radius
        ribs.append(cylinder((c * 0.985, s * 0.985, z + 0.1), 0.14, 0.94, sides=10))
    return [Part(ring, color), *(Part(rib, _GRAY) for rib in ribs)]


def _tower(rng: np.random.Generator) -> list[Part]:
    """Build the launch tower behind the rocket."""
    color = _pick(rng, [_RED, _YELLOW, _GRAY], 1)[0]
    parts = [Part(brick(x, 3, 1 + 3 * i, 1, 1), color) for x in (-2, 1) for i in range(6)]
    parts.append(Part(brick(-2, 3, 19, 4, 1, 1), _DARK))
    parts += [Part(box((-1.1, 3.3, h), (1.1, 3.6, h + 0.25)), _GRAY) for h in (2.2, 3.9, 5.6)]
    parts.append(Part(box((-0.3, 1.8, 6.6), (0.3, 3.2, 6.95)), _GRAY))
    parts.append(Part(brick(-3, -3, 1, 1, 2, 2), _YELLOW))
    parts.append(Part(brick(2, -3, 1, 1, 1, 1), _RED))
    return parts


_KINDS: dict[str, Callable[[np.random.Generator], list[Part]]] = {"car": _car, "house": _house, "rocket": _rocket}
