# SPDX-License-Identifier: Apache-2.0
"""BrokenChairs' five kinds of anomalies, made on a chair of parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from anomalib_pose.sample_data.bricks import Solid, box, join, revolve, subdivide
from anomalib_pose.sample_data.chair_parts import Chair, ChairPart, scaled

_SHIFT = (0.07, 0.28)
_TURN = (np.radians(12), np.radians(45))
_RADIUS = (0.07, 0.26)
_CUT_EDGE = 0.025
# Shares of a part's surface: less is not seen, more is a missing part.
_LEAST_CUT, _LARGEST_CUT = 0.06, 0.6
_STRETCH = 1.6
_TRIES = 20


@dataclass(frozen=True)
class Anomaly:
    """A chair with one part that is wrong.

    Args:
        kind: one of ``ANOMALY_TYPES``.
        number: index of the part in both chairs.
        chair: the wrong chair.
    """

    kind: str
    number: int
    chair: Chair


def break_chair(chair: Chair, kind: str, other: Chair, rng: np.random.Generator) -> Anomaly | None:
    """Make one part of a chair wrong.

    Args:
        chair: the right chair.
        kind: "position", "rotation", "missing", "damaged" or "swapped".
        other: the chair that a swapped part comes from.
        rng: chooses the part and how it is wrong.

    Returns:
        None if the chosen part cannot be made wrong in this way.
    """
    number = int(rng.integers(len(chair.parts)))
    part = chair.parts[number]
    if part is None:
        return None
    if kind == "missing":
        return Anomaly(kind, number, chair.with_part(number, None))
    changed = _KINDS[kind](part, other, rng)
    return None if changed is None else Anomaly(kind, number, chair.with_part(number, changed))


def _position(part: ChairPart, _other: Chair, rng: np.random.Generator) -> ChairPart:
    direction = rng.normal(size=3)
    return replace(part, shift=direction / np.linalg.norm(direction) * rng.uniform(*_SHIFT))


def _rotation(part: ChairPart, _other: Chair, rng: np.random.Generator) -> ChairPart:
    axis = int(rng.integers(3))
    angle = rng.uniform(*_TURN) * rng.choice([-1, 1])
    c, s = np.cos(angle), np.sin(angle)
    turn = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn[[first, second, first, second], [first, second, second, first]] = c, c, -s, s
    return replace(part, rotation=turn)


def _swapped(part: ChairPart, other: Chair, rng: np.random.Generator) -> ChairPart | None:
    """The part of the same role of another chair, stretched a little to the place of this one."""
    candidates = [candidate for candidate in other.parts if candidate is not None and candidate.role == part.role]
    if not candidates:
        return None
    donor = candidates[int(rng.integers(len(candidates)))]
    (low, high), (donor_low, donor_high) = part.bounds, donor.bounds
    stretch = np.clip((high - low) / (donor_high - donor_low), 1 / _STRETCH, _STRETCH)
    shift = (low + high) / 2 - stretch * (donor_low + donor_high) / 2
    return replace(part, solids=tuple(scaled(solid, stretch, shift) for solid in donor.solids))


def _damaged(part: ChairPart, _other: Chair, rng: np.random.Generator) -> ChairPart | None:
    """A ball or a cube is cut out of the part."""
    surface = part.surface
    for _ in range(_TRIES):
        center = surface.vertices[int(rng.integers(len(surface.vertices)))]
        tool = (_ball if rng.random() < 0.5 else _cube)(center, rng.uniform(*_RADIUS), rng)
        cut, share = cut_out(part.solids, tool)
        if _LEAST_CUT <= share <= _LARGEST_CUT:
            return replace(part, cut=cut)
    return None


def cut_out(solids: tuple[Solid, ...], tool: Solid) -> tuple[Solid, float]:
    """Convex solids without what a convex tool covers, with the new surface where the tool went through them.

    The edge of the cut follows the edges of small faces, like a break.

    Args:
        solids: what is cut.
        tool: what is taken away; its faces have to be small for a smooth cut.

    Returns:
        The surface, and the share of its old area that is gone.
    """
    pieces, gone, total = [], 0.0, 0.0
    for solid in solids:
        fine = subdivide(solid, _CUT_EDGE)
        covered = inside(tool, _middles(fine))
        areas = _areas(fine)
        gone, total = gone + areas[covered].sum(), total + areas.sum()
        pieces.append(replace(fine, faces=fine.faces[~covered]))
        pieces.append(Solid(tool.vertices, tool.faces[inside(solid, _middles(tool))], -tool.normals))
    return _compact(join(pieces)), float(gone / total)


def inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Which points (n, 3) lie in a convex solid."""
    corners = solid.vertices[solid.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    # the normal of a face without area is nothing but rounding
    real = length > 1e-9 * length.max()
    corners, normals = corners[real], normals[real] / length[real, None]
    # whichever way round the corners are, outwards is away from the middle
    normals *= np.sign(((corners[:, 0] - solid.vertices.mean(0)) * normals).sum(1))[:, None]
    offsets = (corners[:, 0] * normals).sum(1)
    planes = np.unique(np.column_stack([normals, offsets]).round(9), axis=0)
    near = ((points >= solid.vertices.min(0)) & (points <= solid.vertices.max(0))).all(1)
    found = np.zeros(len(points), bool)
    found[near] = (points[near] @ planes[:, :3].T < planes[:, 3] + 1e-8).all(1)
    return found


def _ball(center: np.ndarray, radius: float, _rng: np.random.Generator) -> Solid:
    height = np.linspace(-np.pi / 2, np.pi / 2, 17)
    profile = [(float(max(radius * np.cos(h), 0.0)), float(radius * np.sin(h))) for h in height]
    profile[0], profile[-1] = (0.0, -radius), (0.0, radius)
    ball = revolve(profile, (0.0, 0.0, 0.0), sides=28)
    return Solid(ball.vertices + center, ball.faces, ball.vertices / radius)


def _cube(center: np.ndarray, radius: float, rng: np.random.Generator) -> Solid:
    half = radius / np.sqrt(2)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cube = subdivide(box((-half,) * 3, (half,) * 3, 0.2 * half), _CUT_EDGE)
    return Solid(cube.vertices @ turn.T + center, cube.faces, cube.normals @ turn.T)


def _middles(solid: Solid) -> np.ndarray:
    middles: np.ndarray = solid.vertices[solid.faces].mean(1)
    return middles


def _areas(solid: Solid) -> np.ndarray:
    corners = solid.vertices[solid.faces]
    areas: np.ndarray = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return areas / 2


def _compact(solid: Solid) -> Solid:
    """A solid without the vertices that no face uses."""
    used = np.unique(solid.faces)
    faces = np.searchsorted(used, solid.faces).astype(np.int32)
    return Solid(solid.vertices[used], faces, solid.normals[used])


_KINDS: dict[str, Callable[[ChairPart, Chair, np.random.Generator], ChairPart | None]] = {
    "position": _position,
    "rotation": _rotation,
    "damaged": _damaged,
    "swapped": _swapped,
}
