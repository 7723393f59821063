# SPDX-License-Identifier: Apache-2.0
"""Meshes of toy bricks. One unit is the distance of studs; a plate is 0.4 units high, a brick three plates."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PLATE = 0.4
_GAP = 0.02
_CHAMFER = 0.05
_STUD_RADIUS, _STUD_HEIGHT, _STUD_SIDES = 0.3, 0.2, 16
_AXES = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Solid:
    """A triangle mesh with normals at its vertices.

    Args:
        vertices: positions (V, 3), float64.
        faces: vertex indices (F, 3), int32.
        normals: unit normals (V, 3), float64.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class Part:
    """One piece of a toy.

    Args:
        solid: surface of the piece.
        color: RGB in [0, 1].
        removable: whether the toy still holds together without this piece.
    """

    solid: Solid
    color: Color
    removable: bool = True


def join(solids: list[Solid]) -> Solid:
    """Join several solids to one."""
    offsets = np.cumsum([0] + [len(solid.vertices) for solid in solids[:-1]])
    return Solid(
        np.concatenate([solid.vertices for solid in solids]),
        np.concatenate([solid.faces + offset for solid, offset in zip(solids, offsets, strict=True)]).astype(np.int32),
        np.concatenate([solid.normals for solid in solids]),
    )


def box(low: tuple[float, float, float], high: tuple[float, float, float], chamfer: float = _CHAMFER) -> Solid:
    """Build a box with rounded edges.

    Args:
        low: smallest coordinates.
        high: largest coordinates.
        chamfer: width of the rounding, limited to a quarter of the shortest edge.
    """
    lower, upper = np.array(low), np.array(high)
    inset = min(chamfer, float((upper - lower).min()) / 4)
    corners = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    vertices, normals = [], []
    for corner in corners:
        sign = 2 * np.array(corner) - 1
        outer = np.where(np.array(corner) == 1, upper, lower)
        for axis in range(3):
            shift = np.full(3, inset)
            shift[axis] = 0
            vertices.append(outer - sign * shift)
            normals.append(sign * np.eye(3)[axis])
    first_vertex = {corner: 3 * i for i, corner in enumerate(corners)}
    faces: list[tuple[int, int, int]] = []

    def add_quad(a: int, b: int, c: int, d: int) -> None:
        faces.extend([(a, b, c), (a, c, d)])

    def corner_at(axis: int, value: int, u: int, v: int) -> tuple[int, int, int]:
        corner = [0, 0, 0]
        corner[axis], corner[(axis + 1) % 3], corner[(axis + 2) % 3] = value, u, v
        return corner[0], corner[1], corner[2]

    for axis in range(3):
        for side in (0, 1):
            ring = [first_vertex[corner_at(axis, side, u, v)] + axis for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
            add_quad(ring[0], ring[1], ring[2], ring[3])
        for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)):
            start, end = first_vertex[corner_at(axis, 0, u, v)], first_vertex[corner_at(axis, 1, u, v)]
            b, c = (axis + 1) % 3, (axis + 2) % 3
            add_quad(start + b, end + b, end + c, start + c)
    faces.extend((first, first + 1, first + 2) for first in first_vertex.values())
    return Solid(np.array(vertices), np.array(faces, np.int32), np.array(normals))


def revolve(
    profile: list[tuple[float, float]], center: tuple[float, float, float], axis: str = "z", sides: int = 24
) -> Solid:
    """Build a surface of revolution.

    Args:
        profile: points (radius, height) along the outline. With radius to the right and height up, the inside of the
            solid is to the left of the outline's direction.
        center: position of radius 0 and height 0.
        axis: "x", "y" or "z".
        sides: number of segments around.
    """
    angle = 2 * np.pi * np.arange(sides) / sides
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    segment = np.arange(sides)
    next_segment = (segment + 1) % sides
    vertices: list[np.ndarray] = []
    normals, faces = [], []
    for (r0, h0), (r1, h1) in pairwise(profile):
        length = np.hypot(r1 - r0, h1 - h0)
        slope = np.array([(h1 - h0) / length, -(r1 - r0) / length])
        offset = 2 * sides * len(vertices)
        ring = [np.column_stack([r * circle, np.full(sides, h)]) for r, h in ((r0, h0), (r1, h1))]
        vertices.append(np.concatenate(ring))
        normals.append(np.tile(np.column_stack([slope[0] * circle, np.full(sides, slope[1])]), (2, 1)))
        first, second = offset + segment, offset + next_segment
        if r0 > 0:
            faces.append(np.column_stack([first, second, second + sides]))
        if r1 > 0:
            faces.append(np.column_stack([first, second + sides, first + sides]))
    order = np.argsort(_AXES[axis])
    points, directions = np.concatenate(vertices)[:, order], np.concatenate(normals)[:, order]
    return Solid(points + np.array(center), np.concatenate(faces).astype(np.int32), directions)


def cylinder(
    center: tuple[float, float, float], radius: float, height: float, axis: str = "z", sides: int = 24
) -> Solid:
    """Build a closed cylinder with small roundings, from ``center`` along an axis (backwards if height < 0)."""
    top, rim = abs(height), min(0.05, radius / 4, abs(height) / 4)
    solid = revolve(
        [(0, 0), (radius - rim, 0), (radius, rim), (radius, top - rim), (radius - rim, top), (0, top)],
        (0, 0, 0),
        axis,
        sides,
    )
    if height < 0:
        flip = np.ones(3)
        flip["xyz".index(axis)] = -1
        solid = Solid(solid.vertices * flip, solid.faces, solid.normals * flip)
    return Solid(solid.vertices + np.array(center), solid.faces, solid.normals)


def prism(polygon: list[tuple[float, float]], low: float, high: float, axis: str = "y") -> Solid:
    """Extrude a convex polygon along an axis.

    Args:
        polygon: corners in the plane x, z for axis "y"; in the plane y, z for axis "x".
        low: start along the axis.
        high: end along the axis.
        axis: "x" or "y".
    """
    flat = np.array(polygon)
    middle = flat.mean(0)
    to_space = {"x": lambda p, h: np.column_stack([h, p]), "y": lambda p, h: np.column_stack([p[:, 0], h, p[:, 1]])}[
        axis
    ]
    vertices, normals = [], []
    faces: list[tuple[int, int, int]] = []
    count = 0
    for height, sign in ((low, -1.0), (high, 1.0)):
        vertices.append(to_space(flat, np.full(len(flat), height)))
        normals.append(to_space(np.zeros_like(flat), np.full(len(flat), sign)))
        faces.extend((count, count + i, count + i + 1) for i in range(1, len(flat) - 1))
        count += len(flat)
    for start, end in zip(flat, np.roll(flat, -1, 0), strict=True):
        edge = end - start
        normal = np.array([edge[1], -edge[0]]) / np.linalg.norm(edge)
        normal *= np.sign(normal @ (start - middle))
        vertices.append(to_space(np.array([start, end, end, start]), np.array([low, low, high, high])))
        normals.append(to_space(np.tile(normal, (4, 1)), np.zeros(4)))
        faces.extend([(count, count + 1, count + 2), (count, count + 2, count + 3)])
        count += 4
    return Solid(np.concatenate(vertices), np.array(faces, np.int32), np.concatenate(normals))


def stud(x: float, y: float, z: float) -> Solid:
    """Build one stud with its base at height ``z``."""
    rim = 0.04
    return revolve(
        [
            (_STUD_RADIUS, 0),
            (_STUD_RADIUS, _STUD_HEIGHT - rim),
            (_STUD_RADIUS - rim, _STUD_HEIGHT),
            (0, _STUD_HEIGHT),
        ],
        (x, y, z),
        sides=_STUD_SIDES,
    )


def brick(x: float, y: float, z: float, nx: int, ny: int, plates: float = 3, *, studs: bool = True) -> Solid:
    """Build a brick of nx by ny studs.

    Args:
        x: smallest x, in studs.
        y: smallest y, in studs.
        z: height of the lower side, in plates.
        nx: studs along x.
        ny: studs along y.
        plates: height in plates; a brick has 3.
        studs: False for a smooth tile.
    """
    top = (z + plates) * PLATE - _GAP / 2
    solids = [box((x + _GAP, y + _GAP, z * PLATE + _GAP / 2), (x + nx - _GAP, y + ny - _GAP, top))]
    if studs:
        solids += [stud(x + i + 0.5, y + j + 0.5, top) for i in range(nx) for j in range(ny)]
    return join(solids)


def subdivide(solid: Solid, longest: float) -> Solid:
    """Bisect edges until none is longer than a limit; faces with a common edge split it at the same point.

    Args:
        solid: solid to subdivide.
        longest: largest allowed length of an edge.
    """
    vertices, normals, faces = solid.vertices, solid.normals, solid.faces
    while True:
        corner = vertices[faces]
        length = np.linalg.norm(corner - np.roll(corner, -1, 1), axis=2)
        large = length.max(1) > longest
        if not large.any():
            return Solid(vertices, faces, normals)
        split, edge = faces[large], length[large].argmax(1)
        row = np.arange(len(split))
        a, b, c = split[row, edge], split[row, (edge + 1) % 3], split[row, (edge + 2) % 3]
        middle = (len(vertices) + row).astype(np.int32)
        normal = normals[a] + normals[b]
        normals = np.concatenate([normals, normal / np.linalg.norm(normal, axis=1, keepdims=True)])
        vertices = np.concatenate([vertices, (vertices[a] + vertices[b]) / 2])
        halves = [np.column_stack([a, middle, c]), np.column_stack([middle, b, c])]
        faces = np.concatenate([faces[~large], *halves]).astype(np.int32)
