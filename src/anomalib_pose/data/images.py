# SPDX-License-Identifier: Apache-2.0
"""Reading images and masks, with errors that name the file."""

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_SIXTEEN_BIT = 65535.0


def image_files(folder: Path) -> list[Path]:
    """Images that lie directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty or no image.
    """
    with _open(path) as image:
        return image.size


def read_image(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read an image as it is stored; EXIF orientation is not applied, as camera calibrations do not apply it either.

    Args:
        path: image with 1, 3 or 4 channels.

    Returns:
        RGB (3, H, W) in [0, 1], composited on white where there is an alpha channel; and the alpha channel (H, W), or
        None if there is none or it is opaque everywhere, which says nothing about the object.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, no image, or cut short.
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
    """Read a mask (H, W) in [0, 1]; masks of 0 and 1 and masks of 0 to 255 are both understood.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is empty, no image, or cut short.
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
        ValueError: if sizes differ, or a file is empty or no image.
    """
    mask, image = image_size(mask_path), image_size(image_path)
    if mask != image:
        msg = (
            f"The mask {mask_path} is {mask[0]} x {mask[1]}, but its image {image_path} is {image[0]} x {image[1]}: "
            "both should have one size."
        )
        raise ValueError(msg)


def over_white(image: Tensor, alpha: Tensor) -> Tensor:
    """Composite an image (3, H, W) with alpha (H, W) on white."""
    return image * alpha + (1 - alpha)


def undistort(channels: Tensor, K: Tensor, distortion: tuple[float, ...], *, nearest: bool = False) -> Tensor:  # noqa: N803
    """Remove lens distortion; the intrinsics stay what they are.

    Args:
        channels: image (C, H, W).
        K: intrinsics (3, 3), pixels; the point (0.5, 0.5) is the first pixel's center.
        distortion: OpenCV's k1, k2, p1, p2, k3.
        nearest: take nearest neighbors and fill with 0 what the photo does not show, as masks need it; otherwise
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
