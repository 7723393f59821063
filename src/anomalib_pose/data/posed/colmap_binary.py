# SPDX-License-Identifier: Apache-2.0
"""Check that the binary files of a COLMAP model are complete."""

import struct
from pathlib import Path

# Binary records: bytes before the name, whether there is a name, format of the entry count, bytes per entry.
_RECORDS = {"images": (64, True, "<Q", 24), "points3D": (43, False, "<Q", 8), "frames": (64, False, "<I", 16)}
_CAMERA_BYTES = 24
_PARAMETERS = (3, 4, 4, 5, 8, 8, 12, 5, 4, 5, 12, 16, 4, 5, 3, 4, 6, 2)
"""Number of parameters of each camera model, by its number."""


def check_complete(model: Path) -> None:
    """Check that no binary file is truncated: COLMAP's reader would never end, or take missing numbers as zeros.

    Raises:
        ValueError: if one is.
    """
    for path in sorted(model.glob("*.bin")):
        if path.stem != "cameras" and path.stem not in _RECORDS:
            continue
        content = path.read_bytes()
        try:
            end = _end_of_cameras(content) if path.stem == "cameras" else _end_of_records(content, path.stem)
            complete = end <= len(content)
        except (struct.error, ValueError, OverflowError):
            complete = False
        if not complete:
            msg = f"{path} is cut short ({len(content)} bytes): copy it again, or write the model again."
            raise ValueError(msg)


def _end_of_records(content: bytes, kind: str) -> int:
    """Return the offset in bytes of the end of the last record.

    Raises:
        struct.error: if the content ends within a number.
        ValueError: if the content ends within a name.
    """
    fixed, named, count_format, entry = _RECORDS[kind]
    (records,), offset = struct.unpack_from("<Q", content), 8
    for _ in range(records):
        offset += fixed
        if named:
            offset = content.index(0, offset) + 1
        (count,) = struct.unpack_from(count_format, content, offset)
        offset += struct.calcsize(count_format) + count * entry
    return offset


def _end_of_cameras(content: bytes) -> int:
    """Return the offset in bytes of the end of the last camera, or of the first camera of an unknown model.

    Unknown models are refused later.

    Raises:
        struct.error: if the content ends within a number.
    """
    (records,), offset = struct.unpack_from("<Q", content), 8
    for _ in range(records):
        (model,) = struct.unpack_from("<I", content, offset + 4)
        if model >= len(_PARAMETERS):
            return offset
        offset += _CAMERA_BYTES + 8 * _PARAMETERS[model]
    return offset
