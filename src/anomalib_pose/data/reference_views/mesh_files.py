# SPDX-License-Identifier: Apache-2.0
"""Reader of mesh files, as modeling programs and scanners write them."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomalib_pose.data.parsers import parsing
from anomalib_pose.data.reference_views.mesh_checks import check_file, check_part
from anomalib_pose.data.reference_views.mesh_materials import missing_materials
from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.reference_views import FITTING_RADIUS

logger = logging.getLogger(__name__)

MESH_SUFFIXES = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
_GRAY = 0.7
_TEXT_SUFFIXES = (".obj", ".off")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FLAT = 1e-7
"""Largest height of a face without area, as a fraction of its longest edge; float32 rounds positions by about that."""


def read_mesh(path: str | Path, *, normalize: bool = True) -> Mesh:
    """Read a triangle mesh, in gray; the parts of a scene become one mesh, larger polygons become triangles.

    The reader needs the extra ``anomalib-pose[mesh]``. Holes in the surface are allowed, and logged. Faces without
    area, and vertices that no other face uses, are dropped. Missing materials and textures are logged.

    Args:
        path: a file ``.obj``, ``.ply``, ``.glb``, ``.gltf``, ``.stl`` or ``.off``.
        normalize: move the center of the bounding box to the origin and scale the mesh into a sphere of radius 0.9,
            which fills reference views from distance 3.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if trimesh is not installed.
        ValueError: if the file is not a mesh, is cut short, has no faces with an area, or has coordinates that are not
            finite or faces of vertices that do not exist.
    """
    path = Path(path)
    vertices, faces, watertight = _read(path)
    vertices, faces = _drop_flat_faces(path, vertices, faces)
    if normalize:
        vertices = vertices - (vertices.min(0) + vertices.max(0)) / 2
        vertices = vertices / np.abs(vertices).max()  # the norm of huge vectors overflows
        vertices = vertices * (FITTING_RADIUS / np.linalg.norm(vertices, axis=1).max())
    elif np.abs(vertices).max() > np.finfo(np.float32).max:
        msg = f"{path} has coordinates up to {np.abs(vertices).max():.3g}, which float32 cannot hold: scale the mesh."
        raise ValueError(msg)
    logger.info("%s has %d faces%s.", path, len(faces), "" if watertight else ", and the surface has holes")
    triangles = torch.from_numpy(faces.astype(np.int32))
    return Mesh.flat(torch.from_numpy(vertices).float(), triangles, torch.full((len(faces), 3), _GRAY))


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read the vertices (V, 3), the faces (F, 3), and whether the surface is closed."""
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
    check_file(path)
    source = _source(path, trimesh)
    # Processing silently drops faces with invalid coordinates. The checks of parts name what is not finite.
    with parsing(path, "a mesh", "export it again"), np.errstate(over="ignore", invalid="ignore"):
        scene = trimesh.load_scene(**source, process=False)
    parts = list(scene.geometry.values())
    for part in parts:
        check_part(path, part)
    with parsing(path, "a mesh", "export it again"), np.errstate(over="ignore", invalid="ignore"):
        mesh = None if scene.is_empty else scene.to_mesh()
    if mesh is None or not len(mesh.faces):
        msg = f"{path} has no faces: expected a mesh of triangles, not a point cloud or an empty scene."
        raise ValueError(msg)
    check_part(path, mesh)
    missing = missing_materials(path)
    if missing:
        logger.warning("%s names files that do not exist (%s): the mesh is gray.", path, ", ".join(missing))
    faces, vertices = np.array(mesh.faces, np.int64), np.array(mesh.vertices, float)
    mesh.vertices = vertices / (np.abs(vertices).max() or 1)  # merging rounds to a fixed number of digits
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    return vertices, faces, bool(mesh.is_watertight)


def _source(path: Path, trimesh: Any) -> dict[str, Any]:
    """Return trimesh's arguments for a file: the path, or the text without its byte-order mark."""
    if path.suffix.lower() not in _TEXT_SUFFIXES:
        return {"file_obj": path}
    content = path.read_bytes().removeprefix(_BYTE_ORDER_MARK)  # trimesh would lose the first vertex
    resolver = trimesh.resolvers.FilePathResolver(str(path))
    return {"file_obj": io.BytesIO(content), "file_type": path.suffix.lower()[1:], "resolver": resolver}


def _drop_flat_faces(path: Path, vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop the faces without area and the vertices that no other face uses.

    Raises:
        ValueError: if no face has an area.
    """
    corners = vertices[faces]
    edges = np.roll(corners, -1, 1) - corners
    scale = np.abs(edges).max((1, 2))
    edges /= np.where(scale > 0, scale, 1)[:, None, None]
    doubled_area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    solid = (scale > 0) & (doubled_area > _FLAT * (edges**2).sum(2).max(1))
    if not solid.any():
        msg = f"{path} has no faces with an area: its {len(faces)} faces are points or lines; export the mesh again."
        raise ValueError(msg)
    if not solid.all():
        logger.info("%s: %d of %d faces have no area and are dropped.", path, int((~solid).sum()), len(faces))
    used, numbers = np.unique(faces[solid], return_inverse=True)
    return vertices[used], numbers.reshape(-1, 3)
