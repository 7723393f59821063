# SPDX-License-Identifier: Apache-2.0
"""Text files of COLMAP models, brought into the strict form that pycolmap reads."""

import codecs
from collections.abc import Iterator
from pathlib import Path

_POSE_FIELDS = 9
"""Fields of an image before its name: number, quaternion, translation, and number of the camera."""


def count_text_images(model: Path) -> int:
    """Count the images of a text model."""
    return sum(1 for _ in _images(_read_lines(model / "images.txt")))


def normalize_text_model(model: Path, out: Path) -> dict[int, str]:
    """Write the text files of a model without byte-order mark, comments, carriage returns and names of images.

    The number of an image stands for its name, which may have spaces. An image whose line of points is missing gets an
    empty one.

    Args:
        model: folder of the model.
        out: folder to write to.

    Returns:
        Names of the images by their numbers.

    Raises:
        ValueError: if a line of ``images.txt`` is no image, or two images have one number.
    """
    names: dict[int, str] = {}
    lines = []
    for pose, points in _images(_read_lines(model / "images.txt")):
        fields = pose.split(maxsplit=_POSE_FIELDS)
        if len(fields) <= _POSE_FIELDS or not fields[0].isdecimal():
            msg = f"images.txt has a line that is no image: {pose[:60]!r}"
            raise ValueError(msg)
        number = int(fields[0])
        if number in names:
            msg = f"images.txt has two images with the number {number}"
            raise ValueError(msg)
        names[number] = fields[_POSE_FIELDS].strip()
        lines += [" ".join([*fields[:_POSE_FIELDS], fields[0]]), points]
    _write_lines(out / "images.txt", lines)
    for path in model.glob("*.txt"):
        if path.stem in {"cameras", "points3D", "rigs", "frames"}:
            _write_lines(out / path.name, [line for line in _read_lines(path) if line])
    return names


def _images(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the line of each image and the line of its points, which may be empty or missing."""
    position = 0
    while position < len(lines):
        pose = lines[position]
        position += 1
        if not pose:
            continue
        points = lines[position] if position < len(lines) else ""
        if _is_points(points):
            position += 1
            yield pose, points
        else:
            yield pose, ""


def _is_points(line: str) -> bool:
    """Return whether a line is empty or a list of x, y and number of a point, and not an image with its name."""
    fields = line.split()
    if len(fields) % 3:
        return False
    try:
        [float(field) for field in fields]
    except ValueError:
        return False
    return True


def _read_lines(path: Path) -> list[str]:
    """Read the lines of a text file without white space at their ends, and without comments."""
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if marked else "utf-8-sig", errors="surrogateescape")
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return [line for line in lines if not line.startswith("#")]


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogateescape")
