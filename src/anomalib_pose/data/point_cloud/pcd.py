# SPDX-License-Identifier: Apache-2.0
"""Reader of .pcd files of the Point Cloud Library: text, binary and compressed; errors name the file."""

import math
import struct
from pathlib import Path

import imagecodecs
import numpy as np

from anomalib_pose.scene.ply_table import read_rows

_KINDS = {
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
_HEADER_LIMIT = 1 << 14
_LAYOUTS = ("ascii", "binary", "binary_compressed")
_LARGEST_EXPANSION = 88
"""LZF writes at most 264 bytes for three bytes that it reads."""


def read_pcd(path: Path) -> np.ndarray:
    """Read the points of a .pcd file as a structured array with one field per field of the file.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the header is not valid, or the file is cut short or damaged.
    """
    if not path.is_file():
        msg = f"There is no file {path}: expected a .pcd."
        raise FileNotFoundError(msg)
    data = path.read_bytes()
    header, offset = _read_header(path, data[:_HEADER_LIMIT])
    layout = header["DATA"][0]
    if layout not in _LAYOUTS:
        msg = f"{path} has .pcd data of the kind {layout!r}, expected {', '.join(_LAYOUTS)}."
        raise ValueError(msg)
    dtype, count = _fields(path, header)
    if layout == "ascii":
        # Text files hold a packed color as a float, whose bits are the color's bytes.
        return read_rows(path, data[offset:], dtype, count, "point", "points")
    if layout == "binary_compressed":
        return _decompress(path, data[offset:], dtype, count)
    if len(data) - offset < count * dtype.itemsize:
        msg = f"{path} is cut short: {count} points need {count * dtype.itemsize} bytes, it has {len(data) - offset}."
        raise ValueError(msg)
    return np.frombuffer(data, dtype, count, offset)


def _read_header(path: Path, head: bytes) -> tuple[dict[str, list[str]], int]:
    """Return the words of each line by its first word, and the offset of the data."""
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


def _fields(path: Path, header: dict[str, list[str]]) -> tuple[np.dtype, int]:
    """Return the fields of a point and the number of points; old files state the number as width and height alone."""
    try:
        counts = [int(value) for value in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
        sizes = [int(value) for value in header["SIZE"]]
        kinds = [_KINDS[kind, size] for kind, size in zip(header["TYPE"], sizes, strict=True)]
        # Fields named "_" are padding. A structured array refuses the same name twice.
        names = [f"_{i}" if name == "_" else name for i, name in enumerate(header["FIELDS"])]
        dtype = np.dtype([(n, k, (c,)) if c != 1 else (n, k) for n, k, c in zip(names, kinds, counts, strict=True)])
        size = [header["POINTS"]] if "POINTS" in header else [header["WIDTH"], header["HEIGHT"]]
        count = math.prod(int(words[0]) for words in size)
    except (KeyError, ValueError, IndexError, TypeError, OverflowError) as error:
        msg = f"{path} has a .pcd header without valid FIELDS, SIZE, TYPE, COUNT and POINTS: {error!r}."
        raise ValueError(msg) from error
    if count < 0 or dtype.itemsize == 0:
        msg = f"{path} has a .pcd header with {count} points of {dtype.itemsize} bytes: expected points with fields."
        raise ValueError(msg)
    return dtype, count


def _decompress(path: Path, data: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    """Read compressed points: two sizes in bytes, then field after field of all points, compressed with LZF."""
    size = count * dtype.itemsize
    compressed, uncompressed = struct.unpack_from("<II", data) if len(data) >= 8 else (0, 0)
    if len(data) < 8 or len(data) - 8 < compressed:
        msg = f"{path} is cut short: its compressed data needs {compressed + 8} bytes, it has {len(data)}."
        raise ValueError(msg)
    if uncompressed != size or size > _LARGEST_EXPANSION * compressed:
        msg = f"{path} has {compressed} compressed bytes for {uncompressed}, but its {count} points need {size}."
        raise ValueError(msg)
    try:
        columns = imagecodecs.lzf_decode(data[8 : 8 + compressed], out=size) if size else b""
    except (imagecodecs.LzfError, ValueError) as error:
        msg = f"{path} has damaged compressed data ({error}): copy it again, or save it uncompressed."
        raise ValueError(msg) from error
    if len(columns) != size:
        msg = f"{path} has damaged compressed data ({len(columns)} bytes instead of {size}): copy it again."
        raise ValueError(msg)
    table, offset = np.empty(count, dtype), 0
    for name in dtype.names or ():
        field = dtype[name]
        table[name] = np.frombuffer(columns, field.base, count * math.prod(field.shape), offset).reshape(
            count, *field.shape
        )
        offset += count * field.itemsize
    return table
