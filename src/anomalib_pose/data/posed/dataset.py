# SPDX-License-Identifier: Apache-2.0
"""Data set of posed images with labels, and the sizes and cameras that its images share."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from anomalib.data import AnomalibDataset
from anomalib.data.utils import LabelName, Split
from pandas import DataFrame
from torch import Tensor
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from anomalib_pose.data.images import over_white, read_image, undistort
from anomalib_pose.data.masks import read_defect_mask, read_object_mask
from anomalib_pose.data.posed.dataclasses import PoseBatch, PoseItem
from anomalib_pose.data.posed.transforms_json import PosedFrame, same_aspect
from anomalib_pose.geometry import resize_image_mask_K, resize_intrinsics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PosedSample:
    """A frame and its label.

    Args:
        frame: image file and camera.
        label: normal, abnormal, or unknown.
        gt_mask_path: mask of the defect, or None.
    """

    frame: PosedFrame
    label: LabelName = LabelName.NORMAL
    gt_mask_path: Path | None = None


class PosedDataset(AnomalibDataset):
    """Images with cameras, all resized to one size together with their intrinsics.

    Args:
        samples: frames with labels. anomalib orders the items by their image paths as strings.
        split: part of the data set that the samples form.
        size: width and height of the items' images in pixels.
        segmentation: whether every labeled sample has a ground-truth mask; normal samples get an empty one.
        white_background: paint the background white where an image has a mask of the object.
        augmentations: resizing of a model, set by anomalib; image, masks and intrinsics follow it. Any other geometric
            augmentation would make the pose wrong.

    Raises:
        ValueError: if there is no sample, or the aspect of an image differs from that of ``size``.
    """

    def __init__(
        self,
        samples: Sequence[PosedSample],
        split: Split,
        size: tuple[int, int],
        *,
        segmentation: bool = True,
        white_background: bool = False,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations)
        if not samples:
            msg = f"The {split.value} part of the data has no images."
            raise ValueError(msg)
        self.size = size
        self.white_background = white_background
        for sample in samples:
            _check_aspect(sample.frame, size)
        rows = [
            {
                "image_path": str(sample.frame.image_path),
                "split": split.value,
                "label": sample.label.name.lower(),
                "label_index": int(sample.label),
                "mask_path": str(sample.gt_mask_path or ""),
                "frame": sample.frame,
            }
            for sample in samples
        ]
        table = DataFrame(rows)
        table.attrs["task"] = "segmentation" if segmentation else "classification"
        self.samples = table

    def __getitem__(self, index: int) -> PoseItem:
        """Return an item with image (3, H, W) and intrinsics, and with the pose, masks and label that the sample has.

        Raises:
            ValueError: if a file cannot be read; the message names it.
        """
        row = self.samples.iloc[index]
        frame: PosedFrame = row.frame
        image, foreground = self._read_frame(frame)
        gt_mask = self._read_gt_mask(row, image)
        channels = image if foreground is None else torch.cat([image, foreground[None]])
        channels, gt_mask, intrinsics = resize_image_mask_K(channels, gt_mask, frame.K, *self.size)
        channels, gt_mask, intrinsics = self._augment(channels, gt_mask, intrinsics)
        label = LabelName(int(row.label_index))
        pose = frame.camera_to_world
        return PoseItem(
            image=Image(channels[:3]),
            gt_mask=None if gt_mask is None else Mask(gt_mask > 0),
            gt_label=None if label == LabelName.UNKNOWN else torch.tensor(int(label)),
            image_path=row.image_path,
            mask_path=row.mask_path,
            camera_to_world=None if pose is None else pose.float(),
            intrinsics=intrinsics.float(),
            foreground=None if foreground is None else channels[3],
        )

    def _read_frame(self, frame: PosedFrame) -> tuple[Tensor, Tensor | None]:
        """Read the undistorted image (3, H, W) and foreground (H, W) at their stored size."""
        image, foreground = read_image(frame.image_path)
        if frame.mask_path is not None:
            mask = read_object_mask(frame.mask_path)
            foreground = mask if foreground is None else mask * foreground
        if frame.distortion:
            image = undistort(image, frame.K, frame.distortion)
            if foreground is not None:
                foreground = undistort(foreground[None], frame.K, frame.distortion, nearest=True)[0]
        if foreground is not None and self.white_background:
            image = over_white(image, foreground)
        return image, foreground

    def _read_gt_mask(self, row: DataFrame, image: Tensor) -> Tensor | None:
        """Read the mask of the defect (H, W) at the size of the stored image."""
        if self.samples.attrs["task"] != "segmentation" or row.label_index == LabelName.UNKNOWN:
            return None
        if row.label_index == LabelName.NORMAL:
            return torch.zeros(image.shape[-2:])
        mask = read_defect_mask(Path(row.mask_path))
        if row.frame.distortion:
            return undistort(mask[None], row.frame.K, row.frame.distortion, nearest=True)[0]
        return mask

    def _augment(
        self, channels: Tensor, gt_mask: Tensor | None, intrinsics: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Apply a model's resizing to image, foreground, mask and intrinsics."""
        if self.augmentations is None:
            return channels, gt_mask, intrinsics
        height, width = channels.shape[-2:]
        mask = Mask(torch.zeros(height, width) if gt_mask is None else gt_mask)
        image, mask = self.augmentations(Image(channels), mask)
        new_height, new_width = image.shape[-2:]
        intrinsics = resize_intrinsics(intrinsics, width, height, new_width, new_height)
        return image.as_subclass(Tensor), None if gt_mask is None else mask.as_subclass(Tensor), intrinsics

    @property
    def collate_fn(self) -> Callable:
        """Function that collates items to a ``PoseBatch``."""
        return PoseBatch.collate


def common_size(frames: Sequence[PosedFrame], image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return the width and height to which all frames are resized: the most common size, scaled.

    Args:
        frames: at least one frame.
        image_size: longer side in pixels, or None to keep the size. anomalib's ``get_datamodule``, and with it its
            benchmark, turns a number into a pair of equal numbers; such a pair counts as one number.

    Raises:
        ValueError: if ``image_size`` is below 1 or has two lengths, or a frame's aspect differs from the most common
            one.
    """
    side = image_size[0] if isinstance(image_size, tuple) else image_size
    if image_size not in (side, (side, side)) or (side is not None and side < 1):
        msg = f"image_size is the longer side of the images in pixels, 1 or more, got {image_size}."
        raise ValueError(msg)
    width, height = Counter((frame.width, frame.height) for frame in frames).most_common(1)[0][0]
    for frame in frames:
        _check_aspect(frame, (width, height))
    if side is None:
        return width, height
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def common_camera(frames: Sequence[PosedFrame], size: tuple[int, int]) -> PosedFrame:
    """Return a frame with the assumed camera of the queries: the training images' camera, or the median of several.

    Args:
        frames: training images, at least one.
        size: width and height in pixels of the images that the intrinsics refer to.

    Raises:
        ValueError: if there are several cameras, and one has distortion.
    """
    scaled = torch.stack([resize_intrinsics(frame.K, frame.width, frame.height, *size) for frame in frames])
    if bool((scaled - scaled[0]).abs().max() > 0.5) or len({frame.distortion for frame in frames}) > 1:
        if any(frame.distortion for frame in frames):
            msg = (
                f"{frames[0].image_path.parent} has images of different cameras with distortion, and the camera of the "
                "queries, which undistortion needs, is unknown. Undistort all images first."
            )
            raise ValueError(msg)
        logger.warning("Training images have different intrinsics; queries get their median.")
    return replace(frames[0], K=scaled.median(0).values, width=size[0], height=size[1])


def query_frame(image_path: Path, width: int, height: int, like: PosedFrame) -> PosedFrame:
    """Return the frame of an image without pose that another frame's camera took.

    Args:
        image_path: the image.
        width: width of the image in pixels.
        height: height of the image in pixels.
        like: frame of the same camera; its intrinsics are scaled to the image's size.

    Raises:
        ValueError: if the aspects differ.
    """
    _check_aspect(PosedFrame(image_path, None, None, like.K, width, height), (like.width, like.height))
    intrinsics = resize_intrinsics(like.K, like.width, like.height, width, height)
    return replace(
        like, image_path=image_path, mask_path=None, camera_to_world=None, K=intrinsics, width=width, height=height
    )


def _check_aspect(frame: PosedFrame, size: tuple[int, int]) -> None:
    # Rounding a small size changes its aspect by up to one pixel; the camera is still the same.
    tolerance = 1 / min(size)
    ratio = frame.width * size[1] / (frame.height * size[0])
    if not same_aspect(frame.width, frame.height, *size) and abs(ratio - 1) > tolerance:
        msg = (
            f"The image {frame.image_path} is {frame.width} x {frame.height}, but the other images have "
            f"another aspect ({size[0]} x {size[1]}): crop or pad the image, and move its principal point, first."
        )
        raise ValueError(msg)
