# SPDX-License-Identifier: Apache-2.0
"""Reading, resizing, padding and undistortion of images and masks; errors of the readers name the file."""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_SIXTEEN_BIT = 65535.0


def image_size(path: Path) -> tuple[int, int]:
    """Read the width and height of an image from its header.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is empty or not an image.
    """
    with _open(path) as image:
        return image.size


def read_image(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read an image as it is stored. EXIF orientation is not applied, because camera calibrations ignore it, too.

    Args:
        path: image with 1, 3 or 4 channels.

    Returns:
        RGB (3, H, W) in [0, 1], composited on white if the image has an alpha channel; and the alpha channel (H, W).
        The alpha is None if the image has none, or if it is opaque everywhere and so does not separate object and
        background.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is empty, not an image, or truncated.
    """
    with _open(path) as image:
        try:
            if image.mode.startswith("I"):
                gray = torch.from_numpy(np.asarray(image, dtype=np.float32) / _SIXTEEN_BIT)
                return gray.clamp(0, 1).expand(3, -1, -1).clone(), None
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB"), dtype=np.float32) / 255
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(_unreadable(path, error)) from error
    channels = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if not has_alpha:
        return channels, None
    color, alpha = channels[:3], channels[3]
    return over_white(color, alpha), None if bool((alpha == 1).all()) else alpha


def read_mask(path: Path) -> Tensor:
    """Read a mask (H, W) in [0, 1]; the file may hold values 0 and 1 or values 0 to 255.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is empty, not an image, or truncated.
    """
    with _open(path) as image:
        try:
            gray = np.asarray(image if image.mode.startswith("I") else image.convert("L"), dtype=np.float32)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(_unreadable(path, error)) from error
        scale = _SIXTEEN_BIT if image.mode.startswith("I") else 255.0
    return torch.from_numpy(gray / (scale if gray.max() > 1 else 1.0)).clamp(0, 1)


def check_mask_size(mask_path: Path, image_path: Path) -> None:
    """Check that a mask has the size of its image.

    Raises:
        FileNotFoundError: if one of them does not exist.
        ValueError: if sizes differ, or a file is empty or not an image.
    """
    mask, image = image_size(mask_path), image_size(image_path)
    if mask != image:
        msg = (
            f"The mask {mask_path} is {mask[0]} x {mask[1]}, but its image {image_path} is {image[0]} x {image[1]}: "
            "both should have the same size."
        )
        raise ValueError(msg)


def over_white(image: Tensor, alpha: Tensor) -> Tensor:
    """Composite an image (3, H, W) with alpha (H, W) on white."""
    return image * alpha + (1 - alpha)


def resize_bicubic(image: Tensor, size: int) -> Tensor:
    """Resize images (C, H, W) or (B, C, H, W) in [0, 1] to squares (..., size, size), bicubic and antialiased."""
    if tuple(image.shape[-2:]) == (size, size):
        return image
    if image.ndim == 3:
        return resize_bicubic(image[None], size)[0]
    return F.interpolate(image, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def pad_to_square(image: Tensor, value: float = 0.0, *, multiple: int = 1) -> Tensor:
    """Pad images (..., H, W) on both sides to squares (..., S, S).

    Args:
        image: images, masks, or other channels.
        value: value of the added pixels.
        multiple: S is the smallest multiple of this number that is not below H and W.
    """
    height, width = image.shape[-2:]
    side = max(height, width)
    if multiple > 1:
        side = math.ceil(side / multiple) * multiple
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(image, (left, side - width - left, top, side - height - top), value=value)


def square_margins(height: int, width: int) -> tuple[int, int]:
    """Return the rows above and the columns to the left that ``pad_to_square`` adds to an image."""
    side = max(height, width)
    return (side - height) // 2, (side - width) // 2


def undistort(channels: Tensor, K: Tensor, distortion: tuple[float, ...], *, nearest: bool = False) -> Tensor:  # noqa: N803
    """Remove lens distortion; the intrinsics do not change.

    Args:
        channels: image (C, H, W).
        K: intrinsics (3, 3), pixels; the point (0.5, 0.5) is the first pixel's center.
        distortion: OpenCV's k1, k2, p1, p2, k3, or these and k4, k5, k6.
        nearest: sample nearest neighbors and fill pixels outside the photograph with 0, as masks need it; otherwise
            interpolate and repeat the border.
    """
    height, width = channels.shape[-2:]
    matrix = K.double().numpy().copy()
    matrix[:2, 2] -= 0.5  # OpenCV has the center of the first pixel at (0, 0)
    maps = cv2.initUndistortRectifyMap(matrix, np.array(distortion), None, matrix, (width, height), cv2.CV_32FC1)
    mode, border = (cv2.INTER_NEAREST, cv2.BORDER_CONSTANT) if nearest else (cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    return torch.stack([torch.from_numpy(cv2.remap(c.numpy(), *maps, mode, borderMode=border)) for c in channels])


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        msg = f"There is no image {path}."
        raise FileNotFoundError(msg)
    if path.stat().st_size == 0:
        msg = f"The image {path} is empty (0 bytes): copy it again, or remove it from the data set."
        raise ValueError(msg)
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return f"The image {path} cannot be read ({error}): copy it again, or remove it from the data set."
