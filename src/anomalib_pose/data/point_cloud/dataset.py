# SPDX-License-Identifier: Apache-2.0
"""Data set of rendered point clouds with labels."""

from collections.abc import Callable, Sequence

import torch
from anomalib.data import AnomalibDataset
from anomalib.data.utils import LabelName, Split
from pandas import DataFrame
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from anomalib_pose.data.point_cloud.dataclasses import CloudBatch, CloudItem
from anomalib_pose.data.point_cloud.rendered_cloud import front_view_index
from anomalib_pose.data.point_cloud.sources import CloudSample, CloudSource


class CloudDataset(AnomalibDataset):
    """Rendered clouds with labels.

    Args:
        samples: recordings, each with the source that reads it. anomalib orders the items by their image paths as
            strings.
        split: part of the data set that the samples form.
        augmentations: resizing of a model, set by anomalib; it may not change the size.

    Raises:
        ValueError: if there is no sample.
    """

    def __init__(
        self,
        samples: Sequence[tuple[CloudSample, CloudSource]],
        split: Split,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations)
        if not samples:
            msg = f"The {split.value} part of the data has no clouds."
            raise ValueError(msg)
        rows = [
            {
                "image_path": str(sample.image_path),
                "split": split.value,
                "label": sample.label.name.lower(),
                "label_index": int(sample.label),
                "mask_path": str(sample.mask_path or ""),
                "sample": sample,
                "source": source,
            }
            for sample, source in samples
        ]
        table = DataFrame(rows)
        table.attrs["task"] = "segmentation"
        self.samples = table

    def __getitem__(self, index: int) -> CloudItem:
        """Return an item with the cloud, its views and its photograph.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if a file cannot be read or contradicts another file, or model and datamodule differ in size.
        """
        row = self.samples.iloc[index]
        cloud = row["source"].load(row["sample"])
        pixels = cloud.views[front_view_index(len(cloud.views))] if cloud.rgb is None else cloud.rgb
        image = Image(pixels.float() / 255)
        gt_mask = Mask(cloud.gt_mask)
        if self.augmentations is not None:
            size = image.shape[-2:]
            image, gt_mask = self.augmentations(image, gt_mask)
            if image.shape[-2:] != size:
                msg = (
                    f"The model needs images of {tuple(image.shape[-2:])} (height, width), but clouds are rendered at "
                    f"{tuple(size)}: set the datamodule's size to the model's."
                )
                raise ValueError(msg)
        return CloudItem(
            image=image,
            gt_mask=gt_mask,
            gt_label=torch.tensor(int(LabelName(int(row.label_index)))),
            image_path=row.image_path,
            mask_path=row.mask_path,
            points=cloud.points,
            valid=cloud.valid,
            organized=torch.tensor(cloud.organized),
            has_rgb=torch.tensor(cloud.rgb is not None),
            views=cloud.views.float() / 255,
            view_masks=cloud.view_masks,
            pixels=cloud.pixels,
            visible=cloud.visible,
            category=row["sample"].category,
        )

    @property
    def collate_fn(self) -> Callable:
        """Function that collates items to a ``CloudBatch``."""
        return CloudBatch.collate
