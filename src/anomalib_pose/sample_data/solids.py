# SPDX-License-Identifier: Apache-2.0
"""Solids of revolution with defects, on a table, in meters: the scenes of ``write_clouds``."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.render.mesh import Mesh

DEFECTS = ("bump", "contamination", "dent", "hole")
SOLIDS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "ring": lambda t: (0.024 + 0.011 * np.sin(np.pi * (2 * t - 0.5)), 0.011 - 0.011 * np.cos(2 * np.pi * (t - 0.25))),
    "dome": lambda t: (0.034 * np.cos(np.pi / 2 * t) ** 0.8, 0.024 * np.sin(np.pi / 2 * t)),
    "peg": lambda t: (
        np.interp(t, [0, 0.3, 0.5, 0.75, 1], [0.03, 0.028, 0.016, 0.014, 0]),
        np.interp(t, [0, 0.3, 0.5, 0.75, 1], [0, 0.012, 0.014, 0.03, 0.032]),
    ),
}
"""Profiles by name: functions from parameters t in [0, 1] to radius and height in meters."""

_AROUND, _ALONG = 128, 64
_TABLE_HALF, _TABLE_CELLS = 0.12, 40
_TABLE_COLOR = (0.16, 0.17, 0.19)
# Height of a defect along the normal in meters, negative inwards.
_HEIGHTS = {"bump": (0.003, 0.005), "dent": (-0.005, -0.003), "hole": (-0.012, -0.009), "contamination": (0.0, 0.0)}
_RADII = (0.004, 0.007)
_DEFECT_THRESHOLD = 0.15  # fraction of a defect's height or color above which a vertex counts as defective


@dataclass(frozen=True)
class SolidOnTable:
    """A solid on a table.

    Args:
        mesh: mesh of solid and table, meters, z up.
        defect: 1 at the vertices of the defect, else 0; (V,).
    """

    mesh: Mesh
    defect: Tensor


def build_solid(shape: str, kind: str, rng: np.random.Generator) -> SolidOnTable:
    """Build a solid at a random place and angle on the table, with slightly varying proportions and color.

    Args:
        shape: name of a profile.
        kind: ``good`` or a kind of defect.
        rng: random generator of shape, color, defect and place.

    Raises:
        ValueError: if the shape or the kind does not exist.
    """
    if shape not in SOLIDS or kind not in ("good", *DEFECTS):
        msg = (
            f"shape should be one of {', '.join(SOLIDS)} and kind one of good, {', '.join(DEFECTS)}; "
            f"got {shape!r} and {kind!r}."
        )
        raise ValueError(msg)
    vertices, faces = _revolve(shape, rng)
    normals = _vertex_normals(vertices, faces)
    color = np.array(_color(shape)) * rng.uniform(0.9, 1.1)
    colors = np.broadcast_to(color, vertices.shape).copy()
    colors *= 1 + 0.05 * np.sin(vertices @ rng.normal(0, 400, 3))[:, None]
    strength = np.zeros(len(vertices))
    if kind != "good":
        strength = _spot(vertices, normals, rng)
        vertices = vertices + (strength * rng.uniform(*_HEIGHTS[kind]))[:, None] * normals
        if kind == "contamination":
            colors = colors + np.minimum(2 * strength, 1)[:, None] * (np.array([0.15, 0.35, 0.75]) - colors)
        normals = _vertex_normals(vertices, faces)
    vertices, normals = _place(vertices, normals, rng)
    return _on_table(vertices, normals, faces, colors, strength)


def _color(shape: str) -> tuple[float, float, float]:
    """Return the base color of a solid, RGB in [0, 1]."""
    return {"ring": (0.75, 0.55, 0.3), "dome": (0.7, 0.32, 0.25), "peg": (0.62, 0.64, 0.62)}[shape]


def _revolve(shape: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Build vertices and faces; faces are counter-clockwise as seen from outside."""
    radius, height = SOLIDS[shape](np.linspace(0, 1, _ALONG))
    angle = np.arange(_AROUND) * (2 * math.pi / _AROUND)
    wobble = 1 + 0.02 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 2 * math.pi))
    scale = rng.uniform(0.95, 1.05, 2)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1) * wobble[:, None]
    xy = scale[0] * np.maximum(radius, 1e-6)[:, None, None] * ring
    z = np.broadcast_to((scale[1] * height)[:, None, None], (_ALONG, _AROUND, 1))
    row, column = np.mgrid[: _ALONG - 1, :_AROUND]
    a, b = row * _AROUND + column, row * _AROUND + (column + 1) % _AROUND
    faces = np.concatenate([np.stack([a, b, b + _AROUND], -1), np.stack([a, b + _AROUND, a + _AROUND], -1)])
    return np.concatenate([xy, z], -1).reshape(-1, 3), faces.reshape(-1, 3)


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Compute unit normals (V, 3) as area-weighted means over the faces around each vertex."""
    corners = vertices[faces]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(total, faces[:, corner], face)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-15)


def _spot(vertices: np.ndarray, normals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Place a smooth round spot on the upper side, in view of the camera: strength (V,), 1 at its center, 0 outside."""
    candidates = np.flatnonzero((normals[:, 2] > 0.6) & (vertices[:, 2] > 0.5 * vertices[:, 2].max()))
    distance = np.linalg.norm(vertices - vertices[rng.choice(candidates)], axis=1)
    return np.clip(1 - (distance / rng.uniform(*_RADII)) ** 2, 0, 1) ** 1.5


def _place(vertices: np.ndarray, normals: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotate vertices and normals about z, and move them on the table."""
    angle = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    moved = vertices @ rotation.T + [*rng.uniform(-0.008, 0.008, 2), 0]
    return moved, normals @ rotation.T


def _on_table(
    vertices: np.ndarray, normals: np.ndarray, faces: np.ndarray, colors: np.ndarray, strength: np.ndarray
) -> SolidOnTable:
    """Join a solid and its table to one mesh."""
    line = np.linspace(-_TABLE_HALF, _TABLE_HALF, _TABLE_CELLS + 1)
    x, y = np.meshgrid(line, line)
    table = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)
    row, column = np.mgrid[:_TABLE_CELLS, :_TABLE_CELLS]
    a = (row * (_TABLE_CELLS + 1) + column).reshape(-1) + len(vertices)
    below = a + _TABLE_CELLS + 1
    table_faces = np.concatenate([np.stack([a, a + 1, below + 1], -1), np.stack([a, below + 1, below], -1)])
    mesh = Mesh(
        torch.from_numpy(np.concatenate([vertices, table])).float(),
        torch.from_numpy(np.concatenate([faces, table_faces])).int(),
        torch.from_numpy(np.concatenate([colors, np.broadcast_to(_TABLE_COLOR, table.shape)])).float().clamp(0, 1),
        torch.from_numpy(np.concatenate([normals, np.broadcast_to([0.0, 0.0, 1.0], table.shape)])).float(),
    )
    defect = np.concatenate([np.where(strength > _DEFECT_THRESHOLD, 1.0, 0.0), np.zeros(len(table))])
    return SolidOnTable(mesh, torch.from_numpy(defect).float())
