# SPDX-License-Identifier: Apache-2.0
"""Preparation of photographs as queries: the one path of every entry point from a file to a model's image.

A photograph is undistorted at its stored size, resized to the model's size together with its mask and intrinsics, and
padded where the training images have several aspect ratios. The background is painted white where a mask is given and
the training views are on white. Transparency is the mask of the object. A photograph with a side below 16 pixels
becomes its mean color, which a model rejects as blank.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.compare.query_content import MIN_SIDE
from anomalib_pose.data.images import over_white, read_image, undistort
from anomalib_pose.data.masks import check_mask_size, read_object_mask
from anomalib_pose.data.posed.query_format import QueryCamera, QueryFormat
from anomalib_pose.geometry import Camera, resize_image_mask_K

_WHITE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Photograph:
    """A photograph at its stored size.

    Args:
        image: RGB (3, H, W) in [0, 1]; over white where the file is transparent.
        alpha: transparency of the file (H, W), or None.
        mask: mask of the object (H, W) from another file, or None.
        name: file, for error messages.
    """

    image: Tensor
    alpha: Tensor | None = None
    mask: Tensor | None = None
    name: str = "tensor"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[-1], self.image.shape[-2]

    @property
    def foreground(self) -> Tensor | None:
        """Mask of the object (H, W) from both sources, or None."""
        if self.alpha is None or self.mask is None:
            return self.mask if self.alpha is None else self.alpha
        return self.mask * self.alpha


@dataclass(frozen=True)
class PreparedQuery:
    """A photograph in the format of a model.

    Args:
        image: RGB (3, H, W) in [0, 1].
        foreground: fraction of each pixel that the object covers (H, W), or None.
        K: intrinsics (3, 3) of ``image``, float64.
        gt_mask: mask of the defect (H, W), or None.
        stored_size: width and height of the photograph in pixels.
        content: width and height of ``image`` without its padding.
    """

    image: Tensor
    foreground: Tensor | None
    K: Tensor
    gt_mask: Tensor | None
    stored_size: tuple[int, int]
    content: tuple[int, int]

    @property
    def margins(self) -> tuple[int, int]:
        """Columns to the left and rows above that the padding added."""
        return _margins(self.content, (self.image.shape[-1], self.image.shape[-2]))

    def stored_camera(self, camera: Camera) -> Camera:
        """Return the camera of the photograph at its stored size, from a camera of the prepared image."""
        unpadded = replace(
            camera, K=_move_center(camera.K, self.margins, -1), width=self.content[0], height=self.content[1]
        )
        return unpadded.resized(*self.stored_size)

    def stored_map(self, values: Tensor) -> Tensor:
        """Resize a map (..., h, w) of the prepared image to the photograph's size, without the padding."""
        (left, top), (width, height) = self.margins, self.content
        cropped = values[..., top : top + height, left : left + width]
        if self.content == self.stored_size:
            return cropped
        flat = cropped.reshape(1, -1, height, width)
        resized = F.interpolate(flat, self.stored_size[::-1], mode="bilinear", align_corners=False)
        return resized.reshape(*values.shape[:-2], *resized.shape[-2:])


def read_photograph(path: Path, mask_path: Path | None = None) -> Photograph:
    """Read a photograph, and the mask of its object if there is one.

    Args:
        path: the photograph.
        mask_path: mask of the object, of the photograph's size, or None.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file cannot be read, or the sizes differ.
    """
    image, alpha = read_image(path)
    mask = None
    if mask_path is not None:
        check_mask_size(mask_path, path)
        mask = read_object_mask(mask_path)
    return Photograph(image, alpha, mask, str(path))


def prepare_query(
    photograph: Photograph,
    query_format: QueryFormat,
    intrinsics: Tensor | None = None,
    gt_mask: Tensor | None = None,
) -> PreparedQuery:
    """Bring a photograph without pose into the format of a model.

    Args:
        photograph: photograph of any resolution.
        query_format: format of the model's images.
        intrinsics: K (3, 3) in pixels of the photograph, which then has no lens distortion and may have any aspect
            ratio; None for the camera of the training images.
        gt_mask: mask of the defect (H, W) at the photograph's size, or None.

    Raises:
        ValueError: if ``intrinsics`` is None and no training image has the photograph's aspect ratio.
    """
    width, height = photograph.size
    if intrinsics is None:
        camera = query_format.camera(width, height, photograph.name)
        return prepare_image(photograph, camera, query_format, gt_mask)
    scale = max(query_format.size) / max(width, height)
    content = max(1, round(width * scale)), max(1, round(height * scale))
    camera = QueryCamera(intrinsics.detach().double().cpu(), width, height, content)
    return prepare_image(photograph, camera, replace(query_format, size=content), gt_mask)


def prepare_image(
    photograph: Photograph, camera: QueryCamera, query_format: QueryFormat, gt_mask: Tensor | None = None
) -> PreparedQuery:
    """Undistort, resize and pad an image with a known camera.

    Args:
        photograph: the image.
        camera: its camera, at the stored size, and its size without padding.
        query_format: format of the result.
        gt_mask: mask of the defect (H, W), or None.
    """
    image, foreground, mask = photograph.image, photograph.foreground, photograph.mask
    if min(photograph.size) < MIN_SIDE:  # enlarging would hide from the model how little there is to judge
        image = image.mean((1, 2), keepdim=True).expand_as(image).clone()
    if any(camera.distortion):
        image = undistort(image, camera.K, camera.distortion)
        foreground, mask, gt_mask = (
            None if part is None else undistort(part[None], camera.K, camera.distortion, nearest=True)[0]
            for part in (foreground, mask, gt_mask)
        )
    if mask is not None and query_format.white_background:  # read_image has put transparent images on white
        image = over_white(image, mask)
    channels = image if foreground is None else torch.cat([image, foreground[None]])
    channels, gt_mask, intrinsics = resize_image_mask_K(channels, gt_mask, camera.K, *camera.content)
    image, foreground = channels[:3], None if foreground is None else channels[3]
    margins = _margins(camera.content, query_format.size)
    if any(margins) or camera.content != query_format.size:
        image = _pad(image, margins, query_format.size, _border_color(image, foreground))
        foreground = None if foreground is None else _pad(foreground, margins, query_format.size)
        gt_mask = None if gt_mask is None else _pad(gt_mask, margins, query_format.size)
        intrinsics = _move_center(intrinsics, margins, 1)
    return PreparedQuery(image, foreground, intrinsics, gt_mask, photograph.size, camera.content)


def _margins(content: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] - content[0]) // 2, (size[1] - content[1]) // 2


def _move_center(K: Tensor, margins: tuple[int, int], sign: int) -> Tensor:  # noqa: N803
    """Return intrinsics with a moved principal point."""
    moved = K.clone()
    moved[..., :2, 2] += sign * K.new_tensor(margins)
    return moved


def _pad(image: Tensor, margins: tuple[int, int], size: tuple[int, int], color: Tensor | None = None) -> Tensor:
    """Pad an image (C, H, W) or mask (H, W) with a color (C,), or with zeros."""
    (left, top), (height, width) = margins, image.shape[-2:]
    padded = image.new_zeros(*image.shape[:-2], size[1], size[0])
    if color is not None:
        padded += color[:, None, None]
    padded[..., top : top + height, left : left + width] = image
    return padded


def _border_color(image: Tensor, foreground: Tensor | None) -> Tensor:
    """Return the color (3,) of padding: white with a known foreground or a white border, else the border's median."""
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1)
    color = border.median(1).values
    return torch.ones_like(color) if foreground is not None or bool((color > 1 - _WHITE_TOLERANCE).all()) else color
