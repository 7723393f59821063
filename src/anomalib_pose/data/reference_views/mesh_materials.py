# SPDX-License-Identifier: Apache-2.0
"""Files of materials and textures that a mesh file names."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

_LIBRARY = re.compile(r"^[ \t]*mtllib[ \t]+(.+?)[ \t\r]*$", re.MULTILINE)
_TEXTURE = re.compile(r"^[ \t]*(?:map_\w+|bump|disp|decal|refl)[ \t]+(?:.*[ \t])?(\S+)[ \t\r]*$", re.MULTILINE)


def missing_materials(path: Path) -> list[str]:
    """List the names of material libraries and textures of an .obj or .gltf that do not exist beside it."""
    suffix = path.suffix.lower()
    if suffix == ".gltf":
        try:
            images = json.loads(path.read_bytes()).get("images", [])
        except (ValueError, AttributeError):
            return []
        uris = [image.get("uri") for image in images if isinstance(image, dict)]
        return _missing(path, [unquote(uri) for uri in uris if isinstance(uri, str) and not uri.startswith("data:")])
    if suffix != ".obj":
        return []
    libraries = _LIBRARY.findall(path.read_text(encoding="utf-8", errors="replace"))
    missing = _missing(path, libraries)
    for name in libraries:
        if name not in missing:
            library = path.parent / name.replace("\\", "/")
            textures = _TEXTURE.findall(library.read_text(encoding="utf-8", errors="replace"))
            missing += _missing(library, textures)
    return list(dict.fromkeys(missing))


def _missing(path: Path, names: list[str]) -> list[str]:
    return [name for name in names if not _is_file(path.parent / name.replace("\\", "/"))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
