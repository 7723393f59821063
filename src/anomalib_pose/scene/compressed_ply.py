# SPDX-License-Identifier: Apache-2.0
"""Unpacking of the compressed .ply files of SuperSplat and PlayCanvas: four 32-bit words a Gaussian.

256 Gaussians in a row form a chunk. The chunk has the ranges of their positions, log-scales and colors. A word holds
a fraction of each range: 11, 10 and 11 bits for positions and scales, four times 8 bits for color and opacity. A
rotation has 2 bits for the number of its largest component (wxyz) and 10 bits for each of the others. Higher
coefficients of the color are bytes, from -4 to 4.
"""

from pathlib import Path

import numpy as np

_CHUNK = 256
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_SH_C0 = 0.28209479177387814
_SH_RANGE = 4.0
_OPAQUE = 40.0
"""Logit of the opacities 0 (negative) and 1."""


def is_compressed(tables: dict[str, np.ndarray]) -> bool:
    """Return whether the elements of a .ply file are those of a compressed file."""
    vertices = tables.get("vertex")
    return "chunk" in tables and vertices is not None and set(_PACKED) <= set(vertices.dtype.names or ())


def unpack(path: Path, tables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert a compressed file to the columns of a plain file of Gaussians.

    Args:
        path: the file, for messages.
        tables: its elements ``chunk``, ``vertex``, and ``sh`` if it has higher coefficients.

    Returns:
        Columns (n,) by name, float64; ``f_rest_*`` only if the file has them.

    Raises:
        ValueError: if the counts of the elements do not match, or a column is missing or has another type.
    """
    chunks, words, sh = tables["chunk"], tables["vertex"], tables.get("sh")
    count = len(words)
    if len(chunks) != -(-count // _CHUNK) or (sh is not None and len(sh) != count):
        rows = "" if sh is None else f" and {len(sh)} rows of sh"
        msg = (
            f"{path} is a compressed .ply of {count} Gaussians with {len(chunks)} chunks{rows}: expected one chunk for "
            f"each {_CHUNK} Gaussians, and one row of sh for each Gaussian."
        )
        raise ValueError(msg)
    wrong = [name for name in _PACKED if words.dtype[name].kind != "u" or words.dtype[name].itemsize != 4]
    ranges = [f"{end}_{name}" for end in ("min", "max") for name in ("x", "y", "z", "scale_x", "scale_y", "scale_z")]
    missing = sorted(set(ranges) - set(chunks.dtype.names or ()))
    if wrong or missing:
        msg = f"{path} is a compressed .ply without the 32-bit columns {', '.join(wrong + missing)}."
        raise ValueError(msg)
    position, rotation, scale, color = (words[name].astype(np.int64) for name in _PACKED)
    chunk = np.arange(count) // _CHUNK
    columns: dict[str, np.ndarray] = {}
    for packed, names, outputs in (
        (position, ("x", "y", "z"), ("x", "y", "z")),
        (scale, ("scale_x", "scale_y", "scale_z"), ("scale_0", "scale_1", "scale_2")),
    ):
        for name, output, (shift, bits) in zip(names, outputs, ((21, 11), (11, 10), (0, 11)), strict=True):
            columns[output] = _in_range(chunks, name, chunk, _fraction(packed, shift, bits))
    for number, (name, shift) in enumerate((("r", 24), ("g", 16), ("b", 8))):
        value = _fraction(color, shift, 8)
        if f"min_{name}" in (chunks.dtype.names or ()):
            value = _in_range(chunks, name, chunk, value)
        columns[f"f_dc_{number}"] = (value - 0.5) / _SH_C0
    columns["opacity"] = _logit(_fraction(color, 0, 8))
    columns |= {f"rot_{number}": values for number, values in enumerate(_rotations(rotation))}
    if sh is not None:
        higher = [name for name in sh.dtype.names or () if name.startswith("f_rest_")]
        columns |= {name: sh[name].astype(float) * (2 * _SH_RANGE / 255) - _SH_RANGE for name in higher}
    return columns


def _fraction(words: np.ndarray, shift: int, bits: int) -> np.ndarray:
    limit = (1 << bits) - 1
    return (words >> shift & limit) / limit


def _in_range(chunks: np.ndarray, name: str, chunk: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    low, high = (chunks[f"{end}_{name}"].astype(float)[chunk] for end in ("min", "max"))
    return low * (1 - fraction) + high * fraction


def _logit(opacity: np.ndarray) -> np.ndarray:
    inside = np.clip(opacity, 1 / 512, 1 - 1 / 512)
    logit = np.log(inside / (1 - inside))
    return np.where(opacity <= 0, -_OPAQUE, np.where(opacity >= 1, _OPAQUE, logit))


def _rotations(words: np.ndarray) -> np.ndarray:
    """Return the quaternions (4, n), wxyz."""
    others = np.stack([(_fraction(words, shift, 10) - 0.5) * np.sqrt(2) for shift in (20, 10, 0)])
    largest_value = np.sqrt(np.clip(1 - (others**2).sum(0), 0, None))
    largest = words >> 30
    components = []
    for number in range(4):
        # Components before the largest keep their number, those after it are one place later.
        place = np.clip(np.where(number < largest, number, number - 1), 0, 2)
        component = np.take_along_axis(others, place[None], 0)[0]
        components.append(np.where(number == largest, largest_value, component))
    return np.stack(components)
