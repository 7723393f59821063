# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of the vertices of .ply files as structured arrays."""

import os
from dataclasses import dataclass
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
_COUNT_DIGITS = 18
_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class _Element:
    """Element of a header; ``dtype`` is None where a property is a list or has an unknown type."""

    name: str
    count: int
    dtype: np.dtype | None
    types: tuple[str, ...]


def read_ply_vertices(path: Path) -> np.ndarray:
    """Read the vertices of a text or binary .ply file: a structured array with one field per property.

    The vertices must be the file's first element, as all programs write them. Other elements such as faces are ignored.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a .ply file with vertices first, or is truncated.
    """
    data, layout, elements, offset = _read_header(path)
    first = elements[0]
    if first.name != "vertex":
        msg = f"The first element of {path} should be its vertices, got {first.name!r}."
        raise ValueError(msg)
    if layout == "ascii":
        return read_rows(path, data[offset:], _dtype(path, first), first.count, "vertex", "vertices")
    return _read_binary(path, data, offset, first)


def read_ply_elements(path: Path) -> dict[str, np.ndarray]:
    """Read the elements of a binary .ply file that come before the first element with a list property, by name.

    The result is empty for text files.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a .ply file, is truncated, or has more rows than its header states.
    """
    data, layout, elements, offset = _read_header(path)
    tables: dict[str, np.ndarray] = {}
    for element in elements if layout != "ascii" else ():
        if element.dtype is None:
            break
        tables[element.name] = _read_binary(path, data, offset, element)
        offset += tables[element.name].nbytes
    last = elements[-1]
    if last.dtype is not None and last.name in tables and len(data) - offset >= last.dtype.itemsize:
        msg = f"{path} has {len(data) - offset} bytes after its last element: its header states too few rows."
        raise ValueError(msg)
    return tables


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


def _read_header(path: Path) -> tuple[bytes, str, list[_Element], int]:
    """Return the file's content, its format, its elements, of which there is at least one, and the data's offset."""
    if not path.is_file():
        msg = f"No .ply at {path}."
        raise FileNotFoundError(msg)
    data = path.read_bytes()
    head = data[:_HEADER_LIMIT]
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
    starts = [number for number, line in enumerate(lines) if line[0] == "element"]
    if not starts:
        msg = f"The first element of {path} should be its vertices, got none."
        raise ValueError(msg)
    stops = [*starts[1:], len(lines)]
    elements = [
        _read_element(path, lines[start:stop], _ORDERS[layout]) for start, stop in zip(starts, stops, strict=True)
    ]
    return data, layout, elements, end + 1


def _read_element(path: Path, lines: list[list[str]], order: str) -> _Element:
    first = lines[0]
    if len(first) != 3 or not first[2].isdigit() or len(first[2]) > _COUNT_DIGITS:
        msg = f"{path} should have a name and a count in each element of its header, got {' '.join(first)[:60]!r}."
        raise ValueError(msg)
    properties = [line[1:] for line in lines[1:] if line[0] == "property"]
    types = tuple(entry[0] if entry else "" for entry in properties)
    known = bool(properties) and all(len(entry) == 2 and entry[0] in _KINDS for entry in properties)
    try:
        dtype = np.dtype([(name, order + _KINDS[kind]) for kind, name in properties]) if known else None
    except ValueError as error:
        msg = f"{path} has two {first[1]} properties of one name: {error}."
        raise ValueError(msg) from error
    return _Element(first[1], int(first[2]), dtype, types)


def _dtype(path: Path, element: _Element) -> np.dtype:
    if element.dtype is None:
        unknown = sorted(set(element.types) - set(_KINDS))
        msg = f"The {element.name} properties of {path} should have types among {sorted(_KINDS)}, got {unknown}."
        raise ValueError(msg)
    return element.dtype


def _read_binary(path: Path, data: bytes, offset: int, element: _Element) -> np.ndarray:
    dtype = _dtype(path, element)
    size = element.count * dtype.itemsize
    if len(data) - offset < size:
        rows = "vertices" if element.name == "vertex" else f"rows of {element.name}"
        msg = f"{path} is cut short: {element.count} {rows} need {size} bytes, it has {len(data) - offset}."
        raise ValueError(msg)
    return np.frombuffer(data, dtype, element.count, offset)


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
    lines = [line for line in data.decode("ascii", "replace").splitlines() if line.strip()][: max(count, 0)]
    try:
        table = np.loadtxt(lines, dtype, ndmin=1) if lines else np.empty(0, dtype)
    except ValueError as error:
        msg = f"{path} has a line that is no {row}: {error}."
        raise ValueError(msg) from error
    if len(table) != count:
        msg = f"{path} is cut short: it should have {count} {rows}, it has {len(table)}."
        raise ValueError(msg)
    return table
