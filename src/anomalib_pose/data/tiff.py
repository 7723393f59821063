# SPDX-License-Identifier: Apache-2.0
"""Decoding of TIFF files that Pillow cannot read in full depth."""

from pathlib import Path

import cv2
import numpy as np
import tifffile

from anomalib_pose.data.pixels import Pixels, in_unit_range

ORIENTATION = 274
_ASSOCIATED_ALPHA, _ALPHA = 1, 2  # kinds of extra channels in a TIFF; 0 is a channel of unknown meaning


def tiff_orientation(page: tifffile.TiffPage) -> int:
    """Return the orientation of a page, 1 to 8; 1 is upright."""
    tag = page.tags.get(ORIENTATION)
    return 1 if tag is None else int(tag.value)


def is_deep(page: tifffile.TiffPage) -> bool:
    """Return whether a page has more than 8 bits, or numbers other than unsigned integers."""
    return page.bitspersample > 8 or page.sampleformat != tifffile.SAMPLEFORMAT.UINT


def has_extra_channel(page: tifffile.TiffPage) -> bool:
    """Return whether a gray or RGB page has more channels than its colors."""
    if page.photometric == tifffile.PHOTOMETRIC.RGB:
        return page.samplesperpixel > 3
    return page.photometric == tifffile.PHOTOMETRIC.MINISBLACK and page.samplesperpixel > 1


def decode_deep_tiff(page: tifffile.TiffPage, path: Path) -> Pixels:
    """Decode a TIFF with more than 8 bits, or with numbers other than unsigned integers."""
    photometric = tifffile.PHOTOMETRIC
    if page.photometric not in (photometric.MINISBLACK, photometric.MINISWHITE, photometric.RGB):
        mode = tifffile.PHOTOMETRIC(page.photometric).name
        msg = f"its color mode {mode} is not supported with numbers of type {page.dtype}; save it as RGB"
        raise ValueError(msg)
    colors = _color_channels(page)
    if not colors <= page.samplesperpixel <= colors + 1 or page.size > 4 * page.imagewidth * page.imagelength:
        msg = f"it has {page.samplesperpixel} channels; save it as gray or RGB, with or without alpha"
        raise ValueError(msg)
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error) or tiff_orientation(page) != 1:
            raise
        values = _decode_tiff_with_opencv(path)
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    values = values.reshape(page.imagelength, page.imagewidth, -1)
    if values.dtype.kind not in "buif" or values.shape[2] != page.samplesperpixel:
        msg = f"{values.shape[2]} channels of type {values.dtype} are not supported"
        raise ValueError(msg)
    color, alpha = _split_alpha(values, page, path)
    if page.photometric == photometric.MINISWHITE:
        color = (1 if color.dtype.kind == "f" else np.iinfo(color.dtype).max) - color
    return Pixels(color, alpha)


def _color_channels(page: tifffile.TiffPage) -> int:
    return 3 if page.photometric == tifffile.PHOTOMETRIC.RGB else 1


def _split_alpha(values: np.ndarray, page: tifffile.TiffPage, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Split the channels of a TIFF into color and alpha; as in Pillow, a fourth channel without a tag is alpha."""
    channels = _color_channels(page)
    extra = [int(sample) for sample in page.extrasamples] or [_ALPHA] * (values.shape[2] - channels)
    color = values[..., :channels]
    if not extra or extra[0] not in (_ALPHA, _ASSOCIATED_ALPHA):
        return color, None
    alpha = in_unit_range(values[..., channels], path)
    if extra[0] == _ASSOCIATED_ALPHA:
        straight = color / np.where(alpha > 0, alpha, 1)[..., None]
        limit = 1 if color.dtype.kind == "f" else np.iinfo(color.dtype).max
        color = np.minimum(straight if color.dtype.kind == "f" else straight.round(), limit).astype(color.dtype)
    return color, alpha


def _decode_tiff_with_opencv(path: Path) -> np.ndarray:
    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        msg = "its compression is not supported; save it without compression, or install imagecodecs"
        raise ValueError(msg)
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    decoded: np.ndarray = values[..., order[values.shape[2]]] if values.ndim == 3 else values
    return decoded
