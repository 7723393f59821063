# SPDX-License-Identifier: Apache-2.0
"""Pixels as a file stores them, and their scaling to [0, 1]."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

_TWELVE_BITS = 4095
_reported: set[Path] = set()
_FLOAT_TOLERANCE = 1e-3


class NamedError(ValueError):
    """Error of a reader whose message names the file."""


@dataclass(frozen=True)
class Pixels:
    """Numbers that an image file stores.

    Args:
        color: gray (H, W, 1) or RGB (H, W, 3), in the file's type of number.
        alpha: opacity (H, W) in [0, 1], float32; None if the file has no transparency.
        lossy: whether the compression changes values, as that of JPEG does.
    """

    color: np.ndarray
    alpha: np.ndarray | None = None
    lossy: bool = False


def in_unit_range(values: np.ndarray, path: Path) -> np.ndarray:
    """Scale stored numbers to [0, 1], float32, by their type.

    Integers of 8 and 16 bits are divided by their largest value. Integers of 32 bits and more count as 8-bit values if
    none is above 255, otherwise as 16-bit values. Floats have to be in [0, 1].

    Raises:
        ValueError: if a value is outside the range, NaN or infinite.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "b" or (kind == "u" and size <= 2):
        if size == 2 and path.parent not in _reported and 0 < values.max() <= _TWELVE_BITS:
            _reported.add(path.parent)
            logger.warning(
                "%s has 16 bits, but no value above %d, and is dark: if the camera has 12 bits or less, multiply the "
                "values before the file is saved. Other such files in this folder are not reported.",
                path, _TWELVE_BITS,
            )  # fmt: skip
        scaled: np.ndarray = values.astype(np.float32) / np.float32(1 if kind == "b" else np.iinfo(values.dtype).max)
        return scaled
    lowest, highest = float(values.min()), float(values.max())
    if kind == "f":
        white, tolerance = 1.0, _FLOAT_TOLERANCE
    elif size <= 2:
        white, tolerance = float(np.iinfo(values.dtype).max), 0.0
    else:
        white, tolerance = (255.0 if highest <= 255 else 65535.0), 0.0
    if not -tolerance <= lowest <= highest <= white + tolerance:
        numbers = "NaN" if np.isnan(lowest + highest) else f"values from {lowest:g} to {highest:g}"
        msg = (
            f"The image {path} has {numbers} of type {values.dtype}, expected 0 to {white:g}: scale them, or save the "
            "image with 8 or 16 bits."
        )
        raise NamedError(msg)
    return np.clip(values.astype(np.float32) / np.float32(white), 0, 1)
