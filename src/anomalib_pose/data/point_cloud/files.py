# SPDX-License-Identifier: Apache-2.0
"""Readers of organized clouds (.tiff) and point lists (.ply, .pcd), and a writer of .pcd; errors name the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

from anomalib_pose.scene.ply_table import read_ply_vertices, read_rows

MINIMUM_POINTS = 100
"""A cloud with fewer points is refused as a mistake."""

_PCD_KINDS = {
    ("F", 4): "<f4",
    ("F", 8): "<f8",
    ("U", 1): "u1",
    ("U", 2): "<u2",
    ("U", 4): "<u4",
    ("I", 1): "i1",
    ("I", 2): "<i2",
    ("I", 4): "<i4",
    ("U", 8): "<u8",
    ("I", 8): "<i8",
}
_PCD_HEADER_LIMIT = 1 << 14


@dataclass(frozen=True)
class PointFile:
    """Points of a file, in stored order.

    Args:
        points: positions (n, 3), float32, in the file's frame and unit; NaN where the sensor has no measurement.
        colors: RGB (n, 3) in [0, 1], or None if the file has no colors.
    """

    points: Tensor
    colors: Tensor | None


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Prefix the message of each ``ValueError`` with the path of the file that the block processes."""
    try:
        yield
    except ValueError as error:
        msg = f"{path}: {error}"
        raise ValueError(msg) from error


def read_xyz(path: Path) -> Tensor:
    """Read the organized cloud (H, W, 3) of a .tiff, float32; cells without a point are 0.

    A cell whose position is not finite, or whose z is 0, has no point.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file cannot be read, does not hold three channels of floats, or has fewer than 100 points.
    """
    if not path.is_file():
        msg = f"There is no file {path}: expected a .tiff with x, y and z of every pixel."
        raise FileNotFoundError(msg)
    try:
        array = np.asarray(tifffile.imread(path))
    except (tifffile.TiffFileError, OSError, ValueError, KeyError, IndexError) as error:
        msg = f"{path} cannot be read as a .tiff ({error}): copy it again, or remove it from the data set."
        raise ValueError(msg) from error
    if array.dtype.kind != "f" or array.ndim != 3 or array.shape[2] != 3:
        msg = f"{path} should hold floats of shape (height, width, 3), x, y and z; it has {array.dtype} {array.shape}."
        raise ValueError(msg)
    xyz = torch.from_numpy(array.astype(np.float32))
    xyz = torch.where(torch.isfinite(xyz).all(-1, keepdim=True), xyz, 0.0)
    _check_count(path, int((xyz[..., 2] != 0).sum()))
    return xyz


def read_points(path: Path) -> PointFile:
    """Read the points of a .ply or .pcd file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the suffix is neither .ply nor .pcd, or the file cannot be read, lacks x, y or z, or has fewer
            than 100 finite points.
    """
    if path.suffix.lower() == ".ply":
        table = read_ply_vertices(path)
    elif path.suffix.lower() == ".pcd":
        table = _read_pcd(path)
    else:
        msg = f"{path} should be a .ply or .pcd file."
        raise ValueError(msg)
    names = table.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        msg = f"{path} should have x, y and z of its points; it has {', '.join(names)}."
        raise ValueError(msg)
    points = np.stack([table[name].astype(np.float32) for name in "xyz"], 1)
    _check_count(path, int(np.isfinite(points).all(1).sum()))
    colors = _colors(table)
    return PointFile(torch.from_numpy(points), None if colors is None else torch.from_numpy(colors))


def write_pcd(path: Path, points: Tensor, colors: Tensor) -> None:
    """Write points (n, 3) and colors (n, 3) in [0, 1] as a binary .pcd."""
    dtype = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4")])
    channels = (colors.clamp(0, 1) * 255).round().to(torch.int64).numpy().astype(np.uint32)
    table = np.empty(len(points), dtype)
    table["xyz"] = points.numpy()
    table["rgb"] = channels[:, 0] << 16 | channels[:, 1] << 8 | channels[:, 2]
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F F\n"
        f"COUNT 1 1 1 1\nWIDTH {len(points)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(points)}\nDATA binary\n"
    )
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(header.encode() + table.tobytes())
    temporary.replace(path)


def _check_count(path: Path, count: int) -> None:
    if count < MINIMUM_POINTS:
        msg = f"{path} has {count} points; a cloud should have {MINIMUM_POINTS} or more: record it again, or remove it."
        raise ValueError(msg)


def _colors(table: np.ndarray) -> np.ndarray | None:
    """Return RGB (n, 3) in [0, 1] from three columns, or from the column into which .pcd files pack three bytes."""
    names = set(table.dtype.names or ())
    if {"red", "green", "blue"} <= names:
        channels = np.stack([table[name].astype(np.float32) for name in ("red", "green", "blue")], 1)
        return channels / (255 if table.dtype["red"].kind in "iu" else 1)
    packed = next((name for name in ("rgb", "rgba") if name in names), None)
    if packed is None or table.dtype[packed].itemsize != 4:
        return None
    bits = np.ascontiguousarray(table[packed]).view(np.uint32)
    return np.stack([bits >> shift & 255 for shift in (16, 8, 0)], 1).astype(np.float32) / 255


def _read_pcd(path: Path) -> np.ndarray:
    """Read the points of a .pcd file, text or binary, as a structured array."""
    if not path.is_file():
        msg = f"There is no file {path}: expected a .pcd."
        raise FileNotFoundError(msg)
    data = path.read_bytes()
    header, offset = _pcd_header(path, data[:_PCD_HEADER_LIMIT])
    layout = header["DATA"][0]
    try:
        counts = [int(value) for value in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
        sizes = [int(value) for value in header["SIZE"]]
        kinds = [_PCD_KINDS[kind, size] for kind, size in zip(header["TYPE"], sizes, strict=True)]
        # Fields named "_" are padding. A structured array refuses the same name twice.
        names = [f"_{i}" if name == "_" else name for i, name in enumerate(header["FIELDS"])]
        dtype = np.dtype([(n, k, (c,)) if c != 1 else (n, k) for n, k, c in zip(names, kinds, counts, strict=True)])
        count = int(header["POINTS"][0])
    except (KeyError, ValueError, IndexError) as error:
        msg = f"{path} has a .pcd header without valid FIELDS, SIZE, TYPE, COUNT and POINTS: {error!r}."
        raise ValueError(msg) from error
    if layout == "ascii":
        # Text files hold a packed color as a float, whose bits are the color's bytes.
        return read_rows(path, data[offset:], dtype, count, "point", "points")
    if layout != "binary":
        msg = f"{path} has .pcd data of the kind {layout!r}, expected ascii or binary: save it uncompressed."
        raise ValueError(msg)
    if count < 0 or len(data) - offset < count * dtype.itemsize:
        msg = f"{path} is cut short: {count} points need {count * dtype.itemsize} bytes, it has {len(data) - offset}."
        raise ValueError(msg)
    return np.frombuffer(data, dtype, count, offset)


def _pcd_header(path: Path, head: bytes) -> tuple[dict[str, list[str]], int]:
    header: dict[str, list[str]] = {}
    offset = 0
    for line in head.splitlines(keepends=True):
        offset += len(line)
        words = line.decode("ascii", "replace").split()
        if words and not words[0].startswith("#"):
            header[words[0].upper()] = words[1:]
        if words[:1] == ["DATA"] and len(words) == 2:
            return header, offset
    msg = f"{path} is not a .pcd file: its header has no line DATA."
    raise ValueError(msg)
