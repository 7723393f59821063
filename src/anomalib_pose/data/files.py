# SPDX-License-Identifier: Apache-2.0
"""Writers of images, JSON and text, atomic creation of a category's folder, and a reader of JSON objects."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomalib_pose.storage import make_temporary_folder, remove_leftovers, written_whole

_TO_OPENGL = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
_JPEG_QUALITY = 95


def opengl_matrix(camera_to_world: Tensor) -> list[list[float]]:
    """Convert a pose (4, 4) from OpenCV axes to the OpenGL axes of MAD's files."""
    matrix: list[list[float]] = (camera_to_world.double() * _TO_OPENGL).tolist()
    return matrix


@contextmanager
def new_category(out: Path, category: str, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``<out>/<category>`` on exit; an error removes it.

    Args:
        out: folder of the data set; created if it does not exist.
        category: name of the category.
        overwrite: replace an existing category.

    Raises:
        FileExistsError: if the category exists and ``overwrite`` is False.
        ValueError: if the category is not a plain folder name.
    """
    if not category or category != Path(category).name or category.startswith(("_", ".")):
        msg = f"A category is a plain folder name that does not begin with '_' or '.', got {category!r}."
        raise ValueError(msg)
    folder = out / category
    if folder.exists() and not overwrite:
        msg = f"{folder} exists already. Choose another category or folder, or ask for it to be overwritten."
        raise FileExistsError(msg)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    partial = make_temporary_folder(out, category)
    partial.chmod(0o755)
    try:
        yield partial
        previous = partial.with_name(f"{partial.name}-old")
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_source_stays(source: Path, target: Path) -> None:
    """Check that replacing a folder does not remove the data that are read.

    Args:
        source: file or folder that is read.
        target: folder that is written.

    Raises:
        ValueError: if the source is the target, or lies in it.
    """
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        msg = f"Writing {target} would remove {source}, which is read: choose another folder for the output."
        raise ValueError(msg)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) or mask (H, W), uint8, in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"quality": _JPEG_QUALITY, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(image).save(path, **options)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file does not hold a JSON object.
    """
    if not path.is_file():
        msg = f"There is no {path.name} in {path.parent}."
        raise FileNotFoundError(msg)
    try:
        content = json.loads(path.read_bytes())  # detects UTF-8 and UTF-16, with a byte-order mark or without
    except (ValueError, RecursionError) as error:
        msg = f"{path} is not valid JSON: {error}."
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} should hold a JSON object, got a {type(content).__name__}."
        raise ValueError(msg)  # noqa: TRY004
    return content


def write_json(path: Path, content: Any) -> None:
    """Write content as indented JSON, replacing the file as a whole; numbers that are not finite become null."""
    write_text(path, json.dumps(finite_json(content), indent=1, allow_nan=False) + "\n")


def finite_json(content: Any) -> Any:
    """Return content of dicts, lists and numbers with None instead of NaN and infinity, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_json(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing it as a whole; missing folders are created."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
