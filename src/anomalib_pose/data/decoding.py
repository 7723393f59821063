# SPDX-License-Identifier: Apache-2.0
"""Decoding of image files of any depth, color mode and transparency to the numbers that they store.

Pixels are read in the order of the file. EXIF and TIFF orientation is not applied, because camera calibrations (COLMAP,
Metashape, nerfstudio) ignore it, too: a portrait photograph of a phone has the intrinsics of a landscape one. A file
with such a tag is reported. Color profiles and gamma are ignored. Of several pages or frames the first is read.
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from anomalib_pose.data.pixels import NamedError, Pixels
from anomalib_pose.data.tiff import ORIENTATION, decode_deep_tiff, has_extra_channel, is_deep, tiff_orientation

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")

MAX_PIXELS = 178_956_970
"""Largest number of pixels of an image; Pillow refuses larger files, too."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, RuntimeError,
           struct.error, zlib.error, cv2.error)  # fmt: skip
# Pillow turns a TIFF by its tag; these turn it back.
_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_reported: set[tuple[str, Path]] = set()
# Photographs of 90 million pixels and more are usual. A context for each file would repeat other warnings.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def image_size(path: Path) -> tuple[int, int]:
    """Read the width and height of an image from its header, as ``decode`` returns it.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is empty, not an image, or has more than ``MAX_PIXELS`` pixels.
    """
    return _read_header(path, lambda page: (page.imagewidth, page.imagelength), lambda image: image.size)


def has_transparency(path: Path) -> bool:
    """Return whether the header of an image says that it has transparency, which may be opaque everywhere.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is empty, not an image, or has more than ``MAX_PIXELS`` pixels.
    """
    return _read_header(path, has_extra_channel, lambda image: bool(image.has_transparency_data))


def _read_header(
    path: Path, of_page: Callable[[tifffile.TiffPage], _Value], of_image: Callable[[Image.Image], _Value]
) -> _Value:
    """Return a value of the first page of a TIFF, or of the header of another image."""
    with _named_errors(path):
        if _is_tiff(path):
            with tifffile.TiffFile(path) as file:
                return of_page(_first_page(file, path))
        with _open(path) as image:
            return of_image(image)


def decode(path: Path) -> Pixels:
    """Read the pixels of an image.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is empty, truncated, not an image, or has more than ``MAX_PIXELS`` pixels.
    """
    with _named_errors(path):
        if _is_tiff(path):
            with tifffile.TiffFile(path) as file:
                page = _first_page(file, path)
                if is_deep(page):
                    return decode_deep_tiff(page, path)
                orientation = tiff_orientation(page)
            return _decode_with_pillow(path, orientation)
        return _decode_with_pillow(path)


def _is_tiff(path: Path) -> bool:
    """Check that a file exists and is not empty, and return whether it is a TIFF."""
    if path.is_symlink() and not path.exists():
        msg = f"The image {path} is a link to {path.readlink()}, which does not exist."
        raise FileNotFoundError(msg)
    if path.is_dir():
        msg = f"{path} is a folder: expected the file of an image."
        raise NamedError(msg)
    if not path.is_file():
        msg = f"There is no image {path}."
        raise FileNotFoundError(msg)
    if path.stat().st_size == 0:
        msg = f"The image {path} is empty (0 bytes): copy it again, or remove it from the data set."
        raise NamedError(msg)
    with path.open("rb") as file:
        return file.read(4) in _TIFF_STARTS


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn errors of decoders into one sentence that names the file."""
    try:
        yield
    except (FileNotFoundError, NamedError) as error:
        raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(*error.args) from None
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path)) from error
    except UnidentifiedImageError as error:
        msg = f"The image {path} cannot be read: expected the content of a PNG, JPEG, BMP, TIFF or WebP file."
        raise ValueError(msg) from error
    except _ERRORS as error:
        text = str(error).replace(f"'{path}'", "it").replace(str(path), "it").replace("\n", " ")
        msg = f"The image {path} cannot be read ({text}): copy it again, or remove it from the data set."
        raise ValueError(msg) from error


def _too_large(path: Path) -> str:
    return f"The image {path} has more than {MAX_PIXELS // 1_000_000} million pixels: make it smaller."


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MAX_PIXELS:
        raise NamedError(_too_large(path))
    if width * height == 0:
        msg = f"The image {path} is {width} x {height}: it has no pixels."
        raise NamedError(msg)


def _open(path: Path) -> ImageFile.ImageFile:
    image = Image.open(path, formats=_FORMATS)
    _check_size(*image.size, path)
    if image.format != "TIFF":
        _report(path, _exif_orientation(image), _frame_count(image))
    return image


def _frame_count(image: ImageFile.ImageFile) -> int:
    """Return the number of frames of an animation; the second image of a camera's MPO file is a preview."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return 1
    return int(getattr(image, "n_frames", 1))


def _exif_orientation(image: ImageFile.ImageFile) -> int:
    if not {"exif", "xmp", "XML:com.adobe.xmp"} & set(image.info):
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except _ERRORS:  # broken tags leave the pixels intact
        return 1


def _first_page(file: tifffile.TiffFile, path: Path) -> tifffile.TiffPage:
    """Return the first page of a TIFF; smaller copies on other pages are not reported."""
    page = file.pages.first
    is_alone = len(file.pages) < 2 or getattr(file.pages[1], "is_reduced", False)
    _check_size(int(page.imagewidth), int(page.imagelength), path)  # a damaged tag may hold any type
    _report(path, tiff_orientation(page), 1 if is_alone else len(file.pages))
    return page


def _decode_with_pillow(path: Path, orientation: int = 1) -> Pixels:
    with _open(path) as image:
        lossy = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and b"VP8L" not in path.read_bytes()[:4096])
        image.load()
        if image.format == "PNG":
            _report(path, _exif_orientation(image), 1)  # the tag may follow the pixels
            if _is_deep_color_png(path):
                return _decode_deep_png(path, image.info.get("transparency"))
        picture: Image.Image = image
        if orientation in _UNDO:
            picture = image.transpose(_UNDO[orientation])
        return _convert(picture, lossy=lossy)


def _convert(image: Image.Image, *, lossy: bool) -> Pixels:
    """Convert an image of any mode of Pillow to gray or RGB, with alpha if it has any."""
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits, which Pillow may widen to 32
        values = np.asarray(image)[..., None]
        return Pixels(values.astype(np.uint16) if values.max() <= 65535 else values, _opacity(values, key))
    if image.mode == "F":
        return Pixels(np.asarray(image)[..., None])
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return Pixels(np.asarray(converted), lossy=lossy)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if key is not None or image.mode in ("LA", "PA", "RGBA") or _has_transparent_palette(image):
        values = np.asarray(image.convert("RGBA"))
        return Pixels(values[..., :3], values[..., 3].astype(np.float32) / 255, lossy)
    if image.mode in ("1", "L"):
        return Pixels(np.asarray(image.convert("L"))[..., None], lossy=lossy)
    return Pixels(np.asarray(image.convert("RGB")), lossy=lossy)


def _has_transparent_palette(image: Image.Image) -> bool:
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _is_deep_color_png(path: Path) -> bool:
    """Return whether a PNG has 16 bits and color or alpha, of which Pillow reads 8 bits only."""
    with path.open("rb") as file:
        header = file.read(26)
    return header[24] == 16 and header[25] != 0


def _decode_deep_png(path: Path, key: tuple[int, ...] | None) -> Pixels:
    values = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        msg = "its 16-bit colors cannot be decoded"
        raise ValueError(msg)
    color = values[..., 2::-1]
    if values.shape[2] == 4:
        return Pixels(color, values[..., 3].astype(np.float32) / 65535)
    return Pixels(color, _opacity(color, key))


def _opacity(values: np.ndarray, key: object) -> np.ndarray | None:
    """Return the opacity (H, W) of pixels (H, W, C) of which one color is transparent; None without such a color."""
    if key is None or isinstance(key, bytes):
        return None
    opacity: np.ndarray = (values != np.array(key)).any(-1).astype(np.float32)
    return opacity


def _report(path: Path, orientation: int, frames: int) -> None:
    """Log an orientation that is not applied, and frames that are not read, once for a folder."""
    if orientation in _UNDO and ("orientation", path.parent) not in _reported:
        _reported.add(("orientation", path.parent))
        logger.warning(
            "%s has EXIF orientation %d, which is not applied, as camera calibrations do not apply it: the image is "
            "read with rows and columns as stored. Other such files in this folder are not reported.",
            path, orientation,
        )  # fmt: skip
    if frames > 1 and ("frames", path.parent) not in _reported:
        _reported.add(("frames", path.parent))
        logger.warning(
            "%s has %d pages or frames, of which the first is read. Other such files in this folder are not reported.",
            path, frames,
        )  # fmt: skip
