# SPDX-License-Identifier: Apache-2.0
"""Checks of mesh files that trimesh lacks: it would drop or invent faces, or count vertices from the end."""

import re
from pathlib import Path
from typing import Any

import numpy as np

_ZERO_INDEX = re.compile(rb"^[ \t]*f[ \t](?:[^\n]*[ \t])?[+-]?0+(?:/[^\n]*)?(?:[ \t\r]|$)", re.MULTILINE)
_STL_HEADER, _STL_FACE = 84, 50
_PLY_HEADER = re.compile(rb"\Aply\s.*?^end_header[^\n]*\n", re.MULTILINE | re.DOTALL)
_PLY_ELEMENT = re.compile(rb"^element[ \t]+\S+[ \t]+(\d{1,18})[ \t\r]*$", re.MULTILINE)
_OFF_COUNTS = re.compile(rb"\A\s*[A-Za-z]*OFF(?:\s|#[^\n]*\n)+(\d{1,18})[ \t]+(\d{1,18})[^\n]*\n", re.DOTALL)


def check_file(path: Path) -> None:
    """Check that a mesh file is not cut short, and that no face of an .obj has the vertex 0.

    Raises:
        ValueError: if not.
    """
    suffix = path.suffix.lower()
    content = path.read_bytes() if suffix in {".obj", ".off", ".ply", ".stl"} else b""
    if suffix == ".obj" and (match := _ZERO_INDEX.search(content)):
        line = content.count(b"\n", 0, match.start()) + 1
        msg = f"{path} has a face with the vertex 0 in line {line}: vertices of an .obj begin at 1; export it again."
        raise ValueError(msg)
    if suffix == ".stl":
        _check_stl(path, content)
    if suffix == ".ply" and (header := _PLY_HEADER.search(content)) and b"format ascii" in header[0]:
        _check_rows(path, _PLY_ELEMENT.findall(header[0]), content[header.end() :])
    if suffix == ".off" and (counts := _OFF_COUNTS.search(content)):
        _check_rows(path, counts.groups(), content[counts.end() :])


def check_part(path: Path, part: Any) -> None:
    """Check that the vertices of a part are finite, and that its faces have vertices that exist.

    Raises:
        ValueError: if not.
    """
    vertices, faces = np.asarray(part.vertices), np.asarray(getattr(part, "faces", ()))
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        msg = f"{path} should have three coordinates of each vertex, it has an array {vertices.shape}."
        raise ValueError(msg)
    if not np.isfinite(vertices).all():
        msg = f"{path} has coordinates that are not finite numbers: export the mesh again."
        raise ValueError(msg)
    if faces.size and not (faces.min() >= 0 and faces.max() < len(vertices)):
        number = faces.min() if faces.min() < 0 else faces.max()
        msg = f"{path} has a face with the vertex {number}, but {len(vertices)} vertices: export the mesh again."
        raise ValueError(msg)


def _check_stl(path: Path, content: bytes) -> None:
    if content[:6].lstrip().lower().startswith(b"solid") and b"facet" in content[:1024]:
        if b"endsolid" not in content[-1024:].lower():
            msg = f"{path} is cut short: the text has no endsolid."
            raise ValueError(msg)
        return
    count = int.from_bytes(content[80:_STL_HEADER], "little")
    size = _STL_HEADER + count * _STL_FACE
    if len(content) < size:
        msg = f"{path} is cut short: an .stl of {count} faces needs {size} bytes, has {len(content)}."
        raise ValueError(msg)


def _check_rows(path: Path, counts: Any, body: bytes) -> None:
    """Check that a text has a line for each vertex and face that its header states."""
    stated = sum(int(count) for count in counts)
    rows = sum(1 for line in body.splitlines() if line.strip() and not line.lstrip().startswith(b"#"))
    if rows < stated:
        msg = f"{path} is cut short: its header states {stated} vertices and faces, it has {rows}."
        raise ValueError(msg)
