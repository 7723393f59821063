# SPDX-License-Identifier: Apache-2.0
"""Data set of posed images with labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from anomalib.data import AnomalibDataset
from anomalib.data.utils import LabelName, Split
from pandas import DataFrame
from torch import Tensor
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from anomalib_pose.data.masks import read_defect_mask
from anomalib_pose.data.posed.dataclasses import PoseBatch, PoseItem
from anomalib_pose.data.posed.query import Photograph, prepare_image, read_photograph
from anomalib_pose.data.posed.query_format import QueryCamera, QueryFormat, check_frames
from anomalib_pose.data.posed.transforms_json import PosedFrame
from anomalib_pose.geometry import resize_intrinsics


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
    """Images with cameras, all brought to one size together with their intrinsics.

    Args:
        samples: frames with labels. anomalib orders the items by their image paths as strings.
        split: part of the data set that the samples form.
        size: width and height of the items' images in pixels; or the format of a set of training images, which pads
            images of several aspect ratios.
        segmentation: whether every labeled sample has a ground-truth mask; normal samples get an empty one.
        white_background: paint the background white where an image has a mask of the object; a format has its own.
        augmentations: resizing of a model, set by anomalib; image, masks and intrinsics follow it. Any other geometric
            augmentation would make the pose wrong.

    Raises:
        ValueError: if there is no sample, the aspect ratio of an image does not fit ``size``, or a camera is
            implausible.
    """

    def __init__(
        self,
        samples: Sequence[PosedSample],
        split: Split,
        size: tuple[int, int] | QueryFormat,
        *,
        segmentation: bool = True,
        white_background: bool = False,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations)
        if not samples:
            msg = f"The {split.value} part of the data has no images."
            raise ValueError(msg)
        frames = [sample.frame for sample in samples]
        if isinstance(size, QueryFormat):
            check_frames(frames)
            self.query_format = size
        else:
            self.query_format = QueryFormat.of_size(frames, size, white_background=white_background)
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
        photograph = read_photograph(frame.image_path, frame.mask_path)
        gt_mask = self._read_gt_mask(row, photograph)
        prepared = prepare_image(photograph, self._camera(frame), self.query_format, gt_mask)
        foreground = prepared.foreground
        channels = prepared.image if foreground is None else torch.cat([prepared.image, foreground[None]])
        channels, gt_mask, intrinsics = self._augment(channels, prepared.gt_mask, prepared.K)
        label = LabelName(int(row.label_index))
        return PoseItem(
            image=Image(channels[:3]),
            gt_mask=None if gt_mask is None else Mask(gt_mask > 0),
            gt_label=None if label == LabelName.UNKNOWN else torch.tensor(int(label)),
            image_path=row.image_path,
            mask_path=row.mask_path,
            camera_to_world=frame.camera_to_world,
            intrinsics=intrinsics.float(),
            foreground=None if foreground is None else channels[3],
            stored_size=torch.tensor(prepared.stored_size),
        )

    def _camera(self, frame: PosedFrame) -> QueryCamera:
        """Return the camera of a frame, with the size of its prepared image."""
        assumed = self.query_format.match(frame.width, frame.height)
        content = self.query_format.size if assumed is None else assumed.content
        return QueryCamera(frame.K, frame.width, frame.height, content, frame.distortion)

    def _read_gt_mask(self, row: DataFrame, photograph: Photograph) -> Tensor | None:
        """Read the mask of the defect (H, W) at the size of the stored image."""
        if self.samples.attrs["task"] != "segmentation" or row.label_index == LabelName.UNKNOWN:
            return None
        if row.label_index == LabelName.NORMAL:
            return torch.zeros(photograph.image.shape[-2:])
        return read_defect_mask(Path(row.mask_path))

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
        return PoseBatch.collate_masked


def query_frame(image_path: Path, width: int, height: int, query_format: QueryFormat) -> PosedFrame:
    """Return the frame of an image without pose, with the camera of the training images.

    Args:
        image_path: the image.
        width: width of the image in pixels.
        height: height of the image in pixels.
        query_format: format of the training images.

    Raises:
        ValueError: if no training image has the aspect ratio of the image, or its lens is unknown.
    """
    camera = query_format.camera(width, height, str(image_path))
    return PosedFrame(image_path, None, None, camera.K, width, height, camera.distortion)
