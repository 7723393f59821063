# SPDX-License-Identifier: Apache-2.0
"""Queries with reference views of their shapes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataset
from anomalib.data.utils import LabelName, Split
from pandas import DataFrame
from torch import Tensor
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from anomalib_pose.data.images import check_mask_size, read_image, read_mask
from anomalib_pose.data.posed.transforms_json import read_json
from anomalib_pose.data.reference_views.broken_chairs_files import BOX_UNIT, GOOD, QueryFile
from anomalib_pose.data.reference_views.dataclasses import ViewBatch, ViewItem
from anomalib_pose.data.reference_views.files import (
    Correspondences,
    ReferenceFile,
    find_reference_views,
    read_views,
    spread_views,
)
from anomalib_pose.data.reference_views.queries import QUERY_SIZE, cropped, resized
from anomalib_pose.data.reference_views.query_crops import box_in_crop, choose_crop, mirrored_box, random_light
from anomalib_pose.geometry import farthest_point_sampling
from anomalib_pose.render.reference_views import IMAGE_SIZE

PAIR_POINTS = 32
_FLIP_SHARE, _LIGHT_SHARE = 0.5, 0.2


class ViewDataset(AnomalibDataset):
    """Square queries on white, each with views of the shape it should show.

    What is random in training is drawn from PyTorch's generator, which every worker of a loader has its own of;
    otherwise the same index gives the same item.

    Args:
        queries: what the data set holds. Items are in the order of the image paths as strings, as anomalib has it.
        split: which part of the data these are.
        views: reference views of an item.
        training: random views, a random part of the query, and a pair of views with the same points; otherwise views
            spread over all, and the query's middle.
        flip: in training, exchange left and right of half the queries.
        light: in training, change brightness and contrast of a fifth of the queries.
        augmentations: anomalib sets a model's resizing here; image and mask follow it.

    Raises:
        ValueError: if there is no query.
    """

    def __init__(
        self,
        queries: Sequence[QueryFile],
        split: Split,
        views: int,
        *,
        training: bool = False,
        flip: bool = True,
        light: bool = True,
        augmentations: Transform | None = None,
    ) -> None:
        super().__init__(augmentations)
        if not queries:
            msg = f"The {split.value} part of the data has no images."
            raise ValueError(msg)
        self.views = views
        self.training = training
        self.flip = flip
        self.light = light
        rows = [
            {
                "image_path": str(query.image_path),
                "split": split.value,
                "label": query.kind,
                "label_index": int(LabelName.NORMAL if query.kind == GOOD else LabelName.ABNORMAL),
                "mask_path": str(query.mask_paths[0]) if query.mask_paths else "",
                "query": query,
            }
            for query in queries
        ]
        table = DataFrame(rows)
        whole = all(query.mask_paths or query.kind == GOOD for query in queries)
        table.attrs["task"] = "segmentation" if whole else "classification"
        self.samples = table

    def __getitem__(self, index: int) -> ViewItem:
        """Item with image (3, 256, 256), views, box, and a pair of views in training.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file cannot be read or does not fit; it is named.
        """
        row = self.samples.iloc[index]
        query: QueryFile = row["query"]
        image, _ = read_image(query.image_path)
        _check_square(query.image_path, image)
        mask = self._mask(query, image)
        image, mask, box = self._shown(resized(image, QUERY_SIZE), mask, _read_box(query))
        if self.augmentations is not None:
            # a resizing moves neither the box, which is in shares, nor what the image shows
            image, mask = self.augmentations(Image(image), Mask(mask))
        files = find_reference_views(query.references)
        images, xyz = read_views(self._chosen(files))
        pair_images, pair_points = self._pair(files, query) if self.training else (None, None)
        return ViewItem(
            image=Image(image),
            gt_mask=Mask(mask > 0) if self.samples.attrs["task"] == "segmentation" else None,
            gt_label=torch.tensor(int(row.label_index)),
            image_path=row.image_path,
            mask_path=row.mask_path,
            reference_images=images,
            reference_xyz=xyz,
            box=box,
            pair_images=pair_images,
            pair_points=pair_points,
            shape_id=query.shape_id,
        )

    def _shown(self, image: Tensor, mask: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Image, mask and box (middle and size in shares) of the part that is shown."""
        top, left = choose_crop(box, random=self.training)
        image, mask = cropped(image, top, left), cropped(mask[None], top, left, nearest=True)[0]
        shown = torch.zeros(4) if box is None else box_in_crop(box, top, left)
        if self.training and self.flip and float(torch.rand(())) < _FLIP_SHARE:
            image, mask = image.flip(-1), mask.flip(-1)
            shown = shown if box is None else mirrored_box(shown)
        if self.training and self.light and float(torch.rand(())) < _LIGHT_SHARE:
            image = random_light(image)
        return image, mask, shown

    def _chosen(self, files: list[ReferenceFile]) -> list[ReferenceFile]:
        """Distinct views: random in training, otherwise spread over all in their order."""
        if not self.training:
            return spread_views(files, self.views)
        order = torch.randperm(len(files)).tolist()
        return spread_views([files[i] for i in order], self.views)

    def _pair(self, files: list[ReferenceFile], query: QueryFile) -> tuple[Tensor, Tensor]:
        """Two random views (2, 3, 256, 256) and points that both see (32, 2, 2)."""
        order = torch.randperm(len(files)).tolist()
        read = {order[0]: files[order[0]].correspondences()}
        for i, first in enumerate(order):
            for second in order[:i] + order[i + 1 :]:
                for number in (first, second):
                    if number not in read:
                        read[number] = files[number].correspondences()
                points = _common_points(read[first], read[second])
                if len(points) >= PAIR_POINTS:
                    points = points[farthest_point_sampling(points[:, 0], PAIR_POINTS)]
                    return torch.stack([files[first].image(), files[second].image()]), points
        msg = f"No two views in {query.references} see {PAIR_POINTS} common points: draw more views of the shape."
        raise ValueError(msg)

    def _mask(self, query: QueryFile, image: Tensor) -> Tensor:
        """What the masks mark together (256, 256), zeros where there are none."""
        mask = torch.zeros(image.shape[-2:])
        for path in query.mask_paths:
            check_mask_size(path, query.image_path)
            mask = torch.maximum(mask, (read_mask(path) > 0).float())
        return resized(mask[None], QUERY_SIZE, nearest=True)[0]

    @property
    def collate_fn(self) -> Callable:
        """Collation to a ``ViewBatch``."""
        return ViewBatch.collate


def _common_points(first: Correspondences, second: Correspondences) -> Tensor:
    """(row, column) in both views (n, 2, 2) of the points that both see inside the picture."""
    both = torch.stack([first.pixels, second.pixels], 1)
    inside = ((both >= 0) & (both < IMAGE_SIZE)).all(-1).all(-1)
    return both[inside & first.visible & second.visible]


def _read_box(query: QueryFile) -> Tensor | None:
    """Box (x_min, y_min, x_max, y_max) in pixels of the 256 x 256 query, cut at its border; None for good ones."""
    if query.annotation_path is None:
        return None
    stored: Any = read_json(query.annotation_path).get("2d_bbox")
    try:
        x, y, width, height = (float(value) for value in stored)
    except (TypeError, ValueError) as error:
        msg = f"{query.annotation_path} should have '2d_bbox': [x, y, width, height] in pixels, found {stored!r}."
        raise ValueError(msg) from error
    box = torch.tensor([x, y, x + width, y + height]).clamp(0, BOX_UNIT) * (QUERY_SIZE / BOX_UNIT)
    if not bool((box[2:] > box[:2]).all()):
        msg = f"{query.annotation_path} has a '2d_bbox' without area inside the image: {stored!r}."
        raise ValueError(msg)
    return box


def _check_square(path: Path, image: Tensor) -> None:
    height, width = image.shape[-2:]
    if height != width:
        msg = f"Queries of BrokenChairs are square, {path} is {width} x {height}: pad it with white, and its masks."
        raise ValueError(msg)
