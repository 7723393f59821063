# SPDX-License-Identifier: Apache-2.0
"""The data set behind every datamodule of posed images."""

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

from anomalib_pose.data.images import over_white, read_image, read_mask, undistort
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
    """Images with cameras; all are given in one size, with intrinsics to match.

    Args:
        samples: what the data set holds. Items are in the order of the image paths as strings, as anomalib has it.
        split: which part of the data these are.
        size: width and height of the images given, pixels.
        segmentation: whether the truth has a mask for every sample with a label; normal samples get an empty one.
        white_background: paint white what the object's mask leaves out, where there is a mask.
        augmentations: anomalib sets a model's resizing here; image, masks and intrinsics follow it. Anything that
            moves the image otherwise would make the pose wrong.

    Raises:
        ValueError: if there is no sample, or an image's aspect is not that of ``size``.
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
        """Item with image (3, H, W), intrinsics, and what else is known.

        Raises:
            ValueError: if a file cannot be read; it is named.
        """
        row = self.samples.iloc[index]
        frame: PosedFrame = row.frame
        image, foreground = self._view(frame)
        gt_mask = self._truth(row, image)
        channels = image if foreground is None else torch.cat([image, foreground[None]])
        channels, gt_mask, intrinsics = resize_image_mask_K(channels, gt_mask, frame.K, *self.size)
        channels, gt_mask, intrinsics = self._augmented(channels, gt_mask, intrinsics)
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

    def _view(self, frame: PosedFrame) -> tuple[Tensor, Tensor | None]:
        """Undistorted image (3, H, W) and foreground (H, W), as large as they are stored."""
        image, foreground = read_image(frame.image_path)
        if frame.mask_path is not None:
            mask = read_mask(frame.mask_path)
            foreground = mask if foreground is None else mask * foreground
        if frame.distortion:
            image = undistort(image, frame.K, frame.distortion)
            if foreground is not None:
                foreground = undistort(foreground[None], frame.K, frame.distortion, nearest=True)[0]
        if foreground is not None and self.white_background:
            image = over_white(image, foreground)
        return image, foreground

    def _truth(self, row: DataFrame, image: Tensor) -> Tensor | None:
        """Mask of the defect (H, W), as large as the stored image."""
        if self.samples.attrs["task"] != "segmentation" or row.label_index == LabelName.UNKNOWN:
            return None
        if row.label_index == LabelName.NORMAL:
            return torch.zeros(image.shape[-2:])
        mask = (read_mask(Path(row.mask_path)) > 0).float()
        if row.frame.distortion:
            return undistort(mask[None], row.frame.K, row.frame.distortion, nearest=True)[0]
        return mask

    def _augmented(
        self, channels: Tensor, gt_mask: Tensor | None, intrinsics: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """A model's own resizing, applied to everything."""
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
        """Collation to a ``PoseBatch``."""
        return PoseBatch.collate


def common_size(frames: Sequence[PosedFrame], image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Width and height that all frames are given in: that of most frames, scaled.

    Args:
        frames: at least one frame.
        image_size: longer side in pixels, or None to keep the size. anomalib's ``get_datamodule``, and with it its
            benchmark, makes a pair of any number; such a pair counts as that number.

    Raises:
        ValueError: if ``image_size`` is below 1 or names two lengths, or a frame's aspect differs from that of most.
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
    """A frame with the camera that queries are taken to be seen by: the training images', or the median of theirs.

    Args:
        frames: training images, at least one.
        size: width and height in pixels of the images that the camera is given for.

    Raises:
        ValueError: if there are several cameras, and one has distortion.
    """
    scaled = torch.stack([resize_intrinsics(frame.K, frame.width, frame.height, *size) for frame in frames])
    if bool((scaled - scaled[0]).abs().max() > 0.5) or len({frame.distortion for frame in frames}) > 1:
        if any(frame.distortion for frame in frames):
            msg = (
                f"{frames[0].image_path.parent} has images of different cameras with distortion: queries cannot be "
                "undistorted without knowing their camera. Undistort all images first."
            )
            raise ValueError(msg)
        logger.warning("Training images have different intrinsics; queries get the median of them.")
    return replace(frames[0], K=scaled.median(0).values, width=size[0], height=size[1])


def query_frame(image_path: Path, width: int, height: int, like: PosedFrame) -> PosedFrame:
    """Frame of an image without pose, taken by the camera of another frame.

    Args:
        image_path: the image.
        width: its width in pixels.
        height: its height in pixels.
        like: frame with the camera's intrinsics; they are scaled to this image's size.

    Raises:
        ValueError: if the aspects differ.
    """
    _check_aspect(PosedFrame(image_path, None, None, like.K, width, height), (like.width, like.height))
    intrinsics = resize_intrinsics(like.K, like.width, like.height, width, height)
    return replace(
        like, image_path=image_path, mask_path=None, camera_to_world=None, K=intrinsics, width=width, height=height
    )


def _check_aspect(frame: PosedFrame, size: tuple[int, int]) -> None:
    # Rounding of a small size changes its aspect by up to a pixel, which is no other camera.
    slack = 1 / min(size)
    ratio = frame.width * size[1] / (frame.height * size[0])
    if not same_aspect(frame.width, frame.height, *size) and abs(ratio - 1) > slack:
        msg = (
            f"The image {frame.image_path} is {frame.width} x {frame.height}, which has not the aspect of the other "
            f"images ({size[0]} x {size[1]}): crop or pad it, with its principal point, first."
        )
        raise ValueError(msg)
