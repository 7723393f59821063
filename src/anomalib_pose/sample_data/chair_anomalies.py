# SPDX-License-Identifier: Apache-2.0
"""The five kinds of anomalies of BrokenChairs, applied to a part of a chair."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from anomalib_pose.sample_data.bricks import Solid, box, join, revolve, subdivide
from anomalib_pose.sample_data.chair_parts import Chair, ChairPart, scaled

_SHIFT = (0.07, 0.28)
_ANGLE = (np.radians(12), np.radians(45))
_RADIUS = (0.07, 0.26)
_CUT_EDGE = 0.025
# Fractions of a part's surface: smaller cuts are invisible, larger cuts amount to a missing part.
_MIN_CUT, _MAX_CUT = 0.06, 0.6
_MAX_STRETCH = 1.6
_TRIES = 20


@dataclass(frozen=True)
class Anomaly:
    """A broken chair with one anomalous part.

    Args:
        kind: one of ``ANOMALY_TYPES``.
        number: index of the part in the whole and in the broken chair.
        chair: broken chair.
    """

    kind: str
    number: int
    chair: Chair


def break_chair(chair: Chair, kind: str, donor: Chair, rng: np.random.Generator) -> Anomaly | None:
    """Apply an anomaly to one part of a chair.

    Args:
        chair: whole chair.
        kind: "position", "rotation", "missing", "damaged" or "swapped".
        donor: chair that a swapped part comes from.
        rng: random generator of the part and of the anomaly.

    Returns:
        The broken chair; None if the anomaly is not possible on the randomly chosen part.
    """
    number = int(rng.integers(len(chair.parts)))
    part = chair.parts[number]
    if part is None:
        return None
    if kind == "missing":
        return Anomaly(kind, number, chair.with_part(number, None))
    changed_part = _KINDS[kind](part, donor, rng)
    return None if changed_part is None else Anomaly(kind, number, chair.with_part(number, changed_part))


def _position(part: ChairPart, _donor: Chair, rng: np.random.Generator) -> ChairPart:
    """Shift the part in a random direction."""
    direction = rng.normal(size=3)
    return replace(part, shift=direction / np.linalg.norm(direction) * rng.uniform(*_SHIFT))


def _rotation(part: ChairPart, _donor: Chair, rng: np.random.Generator) -> ChairPart:
    """Rotate the part about a random axis of the chair."""
    axis = int(rng.integers(3))
    angle = rng.uniform(*_ANGLE) * rng.choice([-1, 1])
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    rotation[[first, second, first, second], [first, second, second, first]] = c, c, -s, s
    return replace(part, rotation=rotation)


def _swapped(part: ChairPart, donor: Chair, rng: np.random.Generator) -> ChairPart | None:
    """Replace the part by a donor's part of the same role, stretched by at most 1.6 to fit the place."""
    candidates = [candidate for candidate in donor.parts if candidate is not None and candidate.role == part.role]
    if not candidates:
        return None
    donor_part = candidates[int(rng.integers(len(candidates)))]
    (low, high), (donor_low, donor_high) = part.bounds, donor_part.bounds
    stretch = np.clip((high - low) / (donor_high - donor_low), 1 / _MAX_STRETCH, _MAX_STRETCH)
    shift = (low + high) / 2 - stretch * (donor_low + donor_high) / 2
    return replace(part, solids=tuple(scaled(solid, stretch, shift) for solid in donor_part.solids))


def _damaged(part: ChairPart, _donor: Chair, rng: np.random.Generator) -> ChairPart | None:
    """Cut a ball or a cube out of the part."""
    surface = part.surface
    for _ in range(_TRIES):
        center = surface.vertices[int(rng.integers(len(surface.vertices)))]
        tool = (_ball if rng.random() < 0.5 else _cube)(center, rng.uniform(*_RADIUS), rng)
        cut, removed_fraction = cut_out(part.solids, tool)
        if _MIN_CUT <= removed_fraction <= _MAX_CUT:
            return replace(part, cut=cut)
    return None


def cut_out(solids: tuple[Solid, ...], tool: Solid) -> tuple[Solid, float]:
    """Subtract a convex tool from convex solids, and close the cut with the tool's surface.

    The edge of the cut follows the edges of small faces, like a break.

    Args:
        solids: solids to cut.
        tool: solid to subtract; its faces have to be small for a smooth cut.

    Returns:
        The surface after the cut, and the removed fraction of the original area.
    """
    pieces, removed_area, total_area = [], 0.0, 0.0
    for solid in solids:
        fine = subdivide(solid, _CUT_EDGE)
        covered = inside(tool, _face_centers(fine))
        areas = _face_areas(fine)
        removed_area, total_area = removed_area + areas[covered].sum(), total_area + areas.sum()
        pieces.append(replace(fine, faces=fine.faces[~covered]))
        pieces.append(Solid(tool.vertices, tool.faces[inside(solid, _face_centers(tool))], -tool.normals))
    return _compact(join(pieces)), float(removed_area / total_area)


def inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Return a mask (n,) of the points (n, 3) inside a convex solid."""
    corners = solid.vertices[solid.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    # The normal of a face without area is undefined; its computed value is rounding noise.
    has_area = length > 1e-9 * length.max()
    corners, normals = corners[has_area], normals[has_area] / length[has_area, None]
    # The order of corners may vary, but outwards is always away from the center.
    normals *= np.sign(((corners[:, 0] - solid.vertices.mean(0)) * normals).sum(1))[:, None]
    offsets = (corners[:, 0] * normals).sum(1)
    planes = np.unique(np.column_stack([normals, offsets]).round(9), axis=0)
    in_box = ((points >= solid.vertices.min(0)) & (points <= solid.vertices.max(0))).all(1)
    mask = np.zeros(len(points), bool)
    mask[in_box] = (points[in_box] @ planes[:, :3].T < planes[:, 3] + 1e-8).all(1)
    return mask


def _ball(center: np.ndarray, radius: float, _rng: np.random.Generator) -> Solid:
    """Build a ball with a small number of faces."""
    height = np.linspace(-np.pi / 2, np.pi / 2, 17)
    profile = [(float(max(radius * np.cos(h), 0.0)), float(radius * np.sin(h))) for h in height]
    profile[0], profile[-1] = (0.0, -radius), (0.0, radius)
    ball = revolve(profile, (0.0, 0.0, 0.0), sides=28)
    return Solid(ball.vertices + center, ball.faces, ball.vertices / radius)


def _cube(center: np.ndarray, radius: float, rng: np.random.Generator) -> Solid:
    """Build a randomly rotated cube with small faces."""
    half = radius / np.sqrt(2)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cube = subdivide(box((-half,) * 3, (half,) * 3, 0.2 * half), _CUT_EDGE)
    return Solid(cube.vertices @ rotation.T + center, cube.faces, cube.normals @ rotation.T)


def _face_centers(solid: Solid) -> np.ndarray:
    """Compute the centers (F, 3) of faces."""
    centers: np.ndarray = solid.vertices[solid.faces].mean(1)
    return centers


def _face_areas(solid: Solid) -> np.ndarray:
    """Compute the areas (F,) of faces."""
    corners = solid.vertices[solid.faces]
    areas: np.ndarray = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    return areas / 2


def _compact(solid: Solid) -> Solid:
    """Remove the vertices that no face uses."""
    used = np.unique(solid.faces)
    faces = np.searchsorted(used, solid.faces).astype(np.int32)
    return Solid(solid.vertices[used], faces, solid.normals[used])


_KINDS: dict[str, Callable[[ChairPart, Chair, np.random.Generator], ChairPart | None]] = {
    "position": _position,
    "rotation": _rotation,
    "damaged": _damaged,
    "swapped": _swapped,
}
