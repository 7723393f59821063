# SPDX-License-Identifier: Apache-2.0
"""Reader of mesh files, as modeling programs and scanners write them."""

import logging
from pathlib import Path

import numpy as np
import torch

from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.reference_views import FITTING_RADIUS

logger = logging.getLogger(__name__)

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
_GRAY = 0.7


def read_mesh(path: str | Path, *, normalize: bool = True) -> Mesh:
    """Read a triangle mesh, in gray; the parts of a scene become one mesh, larger polygons become triangles.

    The reader needs the extra ``anomalib-pose[mesh]``. Holes in the surface are allowed, and logged.

    Args:
        path: a file ``.obj``, ``.ply``, ``.glb``, ``.gltf``, ``.stl`` or ``.off``.
        normalize: move the center of the bounding box to the origin and scale the mesh into a sphere of radius 0.9,
            which fills reference views from distance 3.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if trimesh is not installed.
        ValueError: if the file is not a mesh, has no faces, or has coordinates that are not finite.
    """
    path = Path(path)
    vertices, faces, watertight = _read(path)
    if normalize:
        vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
        radius = np.linalg.norm(vertices, axis=1).max()
        if radius == 0:
            msg = f"All vertices of {path} are the same point: expected a mesh with an extent."
            raise ValueError(msg)
        vertices = vertices * (FITTING_RADIUS / radius)
    logger.info("%s has %d faces%s.", path, len(faces), "" if watertight else ", and the surface has holes")
    triangles = torch.from_numpy(faces.astype(np.int32))
    return Mesh.flat(torch.from_numpy(vertices).float(), triangles, torch.full((len(faces), 3), _GRAY))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read the vertices (V, 3) of faces, the faces (F, 3), and whether the surface is closed."""
    if path.suffix.lower() not in MESH_SUFFIXES:
        msg = f"A mesh is read from a file {', '.join(MESH_SUFFIXES)}, got {path}."
        raise ValueError(msg)
    if not path.is_file():
        msg = f"There is no mesh {path}."
        raise FileNotFoundError(msg)
    try:
        import trimesh
    except ImportError as error:
        msg = 'Reading meshes needs trimesh: pip install "anomalib-pose[mesh]".'
        raise ImportError(msg) from error
    try:
        scene = trimesh.load_scene(path, process=False)  # processing silently drops faces with invalid coordinates
    except Exception as error:  # each of trimesh's parsers raises its own errors
        msg = f"{path} cannot be read as a mesh ({type(error).__name__}: {error}): export it again."
        raise ValueError(msg) from error
    parts = scene.geometry.values()
    if not all(np.isfinite(part.vertices).all() for part in parts):
        msg = f"{path} has coordinates that are not finite numbers: export the mesh again."
        raise ValueError(msg)
    mesh = None if scene.is_empty else scene.to_mesh()
    if mesh is None or not len(mesh.faces):
        msg = f"{path} has no faces: expected a mesh of triangles, not a point cloud or an empty scene."
        raise ValueError(msg)
    faces = np.array(mesh.faces, np.int64)
    used = np.unique(faces)
    vertices = np.array(mesh.vertices, float)[used]
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    return vertices, np.searchsorted(used, faces), bool(mesh.is_watertight)
