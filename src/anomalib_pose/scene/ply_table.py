# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of the vertices of .ply files as structured arrays."""

import os
from pathlib import Path

import numpy as np

_HEADER_LIMIT = 1 << 16
_KINDS = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}


def read_ply_vertices(path: Path) -> np.ndarray:
    """Read the vertices of a text or binary .ply file: a structured array with one field per property.

    The vertices must be the file's first element, as all programs write them. Other elements such as faces are ignored.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a .ply file with vertices first, or is truncated.
    """
    if not path.is_file():
        msg = f"No .ply at {path}."
        raise FileNotFoundError(msg)
    data = path.read_bytes()
    layout, count, dtype, offset = _read_header(path, data[:_HEADER_LIMIT])
    if layout == "ascii":
        return read_rows(path, data[offset:], dtype, count, "vertex", "vertices")
    if len(data) - offset < count * dtype.itemsize:
        msg = f"{path} is cut short: {count} vertices need {count * dtype.itemsize} bytes, it has {len(data) - offset}."
        raise ValueError(msg)
    return np.frombuffer(data, dtype, count, offset)


def write_ply_vertices(path: Path, table: np.ndarray) -> None:
    """Write vertices as a binary little-endian .ply file.

    Args:
        path: the file; it is written under a temporary name and then renamed.
        table: structured array with one field per property.
    """
    kinds = {kind: name for name, kind in reversed(_KINDS.items())}
    fields = [(name, table.dtype[name].str[1:]) for name in table.dtype.names or ()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [f"property {kinds[kind]} {name}" for name, kind in fields] + ["end_header", ""]
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write("\n".join(header).encode())
        file.write(table.astype([(name, "<" + kind) for name, kind in fields]).tobytes())
    os.replace(temporary, path)  # noqa: PTH105 - atomic on every platform


def _read_header(path: Path, head: bytes) -> tuple[str, int, np.dtype, int]:
    """Return the format, the number of vertices, their fields, and the offset of the data."""
    mark = head.find(b"end_header")
    end = head.find(b"\n", mark)
    if not head.startswith(b"ply") or mark < 0 or end < 0:
        msg = f"{path} is no .ply file: it has no ply header."
        raise ValueError(msg)
    lines = [line.split() for line in head[:mark].decode("ascii", "replace").splitlines() if line.strip()]
    layout = next((line[1] for line in lines if line[0] == "format" and len(line) > 1), "")
    if layout not in _ORDERS:
        msg = f"The format of {path} should be one of {', '.join(_ORDERS)}, got {layout!r}."
        raise ValueError(msg)
    elements = [number for number, line in enumerate(lines) if line[0] == "element"]
    first = lines[elements[0]] if elements else []
    if first[:2] != ["element", "vertex"] or len(first) != 3 or not first[2].isdigit():
        msg = f"The first element of {path} should be its vertices, got {' '.join(first) or 'none'}."
        raise ValueError(msg)
    stop = elements[1] if len(elements) > 1 else len(lines)
    properties = [line[1:] for line in lines[elements[0] : stop] if line[0] == "property"]
    unknown = sorted({entry[0] for entry in properties if len(entry) != 2 or entry[0] not in _KINDS})
    if unknown or not properties:
        msg = f"The vertex properties of {path} should have types among {sorted(_KINDS)}, got {unknown}."
        raise ValueError(msg)
    try:
        dtype = np.dtype([(name, _ORDERS[layout] + _KINDS[kind]) for kind, name in properties])
    except ValueError as error:
        msg = f"{path} has two vertex properties of one name: {error}."
        raise ValueError(msg) from error
    return layout, int(first[2]), dtype, end + 1


def read_rows(path: Path, data: bytes, dtype: np.dtype, count: int, row: str, rows: str) -> np.ndarray:
    """Read rows of a text, one per line.

    Args:
        path: path of the file, for messages.
        data: the text.
        dtype: fields of a row.
        count: number of rows; later lines are ignored.
        row: name of a row, for messages.
        rows: plural of the name.

    Raises:
        ValueError: if a line is not a row, or there are fewer than ``count``.
    """
    lines = data.decode("ascii", "replace").splitlines()[: max(count, 0)]
    try:
        table = np.loadtxt(lines, dtype, ndmin=1) if lines else np.empty(0, dtype)
    except ValueError as error:
        msg = f"{path} has a line that is no {row}: {error}."
        raise ValueError(msg) from error
    if len(table) != count:
        msg = f"{path} is cut short: it should have {count} {rows}, it has {len(table)}."
        raise ValueError(msg)
    return table
