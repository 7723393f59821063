# SPDX-License-Identifier: Apache-2.0
"""Reading, resizing, padding and undistortion of images; errors of the reader name the file."""

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.data.decoding import decode
from anomalib_pose.data.pixels import in_unit_range

_OPAQUE = 0.5  # a lossy compression of an opaque channel, or one value for all pixels, is no mask


def read_image(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read an image of any depth, color mode and transparency.

    Numbers are scaled by their type, see ``in_unit_range``. EXIF orientation, color profiles and gamma are not applied,
    see ``anomalib_pose.data.decoding``.

    Args:
        path: PNG, JPEG, BMP, TIFF or WebP.

    Returns:
        RGB (3, H, W) in [0, 1], composited on white if the image has an alpha channel; and the alpha channel (H, W).
        The alpha is None if the image has none, or if no pixel is mostly transparent, so that it does not separate
        object and background.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is empty, not an image, truncated, transparent everywhere, larger than ``MAX_PIXELS``,
            or has values outside the range of its type.
    """
    pixels = decode(path)
    color = torch.from_numpy(in_unit_range(pixels.color, path)).permute(2, 0, 1).expand(3, -1, -1).contiguous()
    if pixels.alpha is None:
        return color, None
    alpha = torch.from_numpy(pixels.alpha)
    if not bool((alpha > 0).any()):
        msg = f"The image {path} is transparent everywhere: save it with an alpha channel that shows the object."
        raise ValueError(msg)
    return over_white(color, alpha), None if bool((alpha >= _OPAQUE).all()) else alpha


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
