# SPDX-License-Identifier: Apache-2.0
"""Data set of queries with reference views of their shapes."""

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataset
from anomalib.data.utils import LabelName, Split
from pandas import DataFrame
from torch import Tensor
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from anomalib_pose.compare.query_content import MIN_SIDE
from anomalib_pose.data.files import read_json
from anomalib_pose.data.images import read_image
from anomalib_pose.data.masks import check_mask_size, read_defect_mask
from anomalib_pose.data.reference_views.broken_chairs_files import BOX_UNIT, GOOD, QuerySample
from anomalib_pose.data.reference_views.dataclasses import ViewBatch, ViewItem
from anomalib_pose.data.reference_views.files import (
    Correspondences,
    ReferenceViewFile,
    find_reference_views,
    read_views,
    spread_views,
)
from anomalib_pose.data.reference_views.queries import QUERY_SIZE, enlarge_crop, resize_square
from anomalib_pose.data.reference_views.query_crops import (
    box_in_crop,
    choose_crop,
    jitter_brightness_contrast,
    mirror_box,
)
from anomalib_pose.geometry import farthest_point_sampling
from anomalib_pose.render.reference_views import IMAGE_SIZE

logger = logging.getLogger(__name__)

PAIR_POINTS = 32
"""Number of points that are visible in both views of a training pair."""
_BOX_SLACK = 8  # pixels of the image of 512 pixels
_FLIP_PROBABILITY, _LIGHT_PROBABILITY = 0.5, 0.2


class ReferenceViewDataset(AnomalibDataset):
    """Square queries on white, each with reference views of its defect-free shape.

    In training, random numbers come from PyTorch's generator, and each worker of a loader has its own generator.
    Otherwise equal indices give equal items.

    Args:
        queries: queries with their files. anomalib orders the items by their image paths as strings.
        split: part of the data set that the queries form.
        views: number of reference views of an item.
        training: whether to take random views, a random crop of the query, and a pair of views with common points;
            otherwise views are spread over all views of the shape, and the crop is central.
        flip: in training, mirror half of the queries left to right.
        light: in training, change brightness and contrast of a fifth of the queries.
        augmentations: resizing of a model, set by anomalib; image and mask follow it.

    Raises:
        ValueError: if there is no query.
    """

    def __init__(
        self,
        queries: Sequence[QuerySample],
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
        has_masks = all(query.mask_paths or query.kind == GOOD for query in queries)
        table.attrs["task"] = "segmentation" if has_masks else "classification"
        self.samples = table

    def __getitem__(self, index: int) -> ViewItem:
        """Return an item with image (3, 256, 256), reference views, box, and in training a pair of views.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if a file cannot be read or has unexpected content; the message names it.
        """
        row = self.samples.iloc[index]
        query: QuerySample = row["query"]
        image, _ = read_image(query.image_path)
        _check_square(query.image_path, image)
        if image.shape[-1] < MIN_SIDE:  # a tiny query gets no verdict, as a white one
            image = torch.ones_like(image)
        mask = self._read_gt_mask(query, image)
        image, mask, box = self._crop(resize_square(image, QUERY_SIZE), mask, _read_box(query))
        if self.augmentations is not None:
            # Resizing does not change the box, which is in fractions of the image.
            image, mask = self.augmentations(Image(image), Mask(mask))
        files = find_reference_views(query.reference_dir)
        images, xyz = read_views(self._select_views(files))
        pair_images, pair_points = self._read_pair(files, query) if self.training else (None, None)
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

    def _crop(self, image: Tensor, mask: Tensor, box: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Crop and augment image, mask and box; return the box as center and size in fractions of the crop."""
        top, left = choose_crop(box, random=self.training)
        image, mask = enlarge_crop(image, top, left), enlarge_crop(mask[None], top, left, nearest=True)[0]
        crop_box = torch.zeros(4) if box is None else box_in_crop(box, top, left)
        if self.training and self.flip and float(torch.rand(())) < _FLIP_PROBABILITY:
            image, mask = image.flip(-1), mask.flip(-1)
            crop_box = crop_box if box is None else mirror_box(crop_box)
        if self.training and self.light and float(torch.rand(())) < _LIGHT_PROBABILITY:
            image = jitter_brightness_contrast(image)
        return image, mask, crop_box

    def _select_views(self, files: list[ReferenceViewFile]) -> list[ReferenceViewFile]:
        """Select distinct views: random ones in training, otherwise views spread over all, in their order."""
        if not self.training:
            return spread_views(files, self.views)
        order = torch.randperm(len(files)).tolist()
        return spread_views([files[i] for i in order], self.views)

    def _read_pair(self, files: list[ReferenceViewFile], query: QuerySample) -> tuple[Tensor, Tensor]:
        """Read two random views (2, 3, 256, 256), and (row, column) of common points in both (32, 2, 2)."""
        order = torch.randperm(len(files)).tolist()
        correspondences = {order[0]: files[order[0]].correspondences()}
        for i, first in enumerate(order):
            for second in order[:i] + order[i + 1 :]:
                for number in (first, second):
                    if number not in correspondences:
                        correspondences[number] = files[number].correspondences()
                points = _common_points(correspondences[first], correspondences[second])
                if len(points) >= PAIR_POINTS:
                    points = points[farthest_point_sampling(points[:, 0], PAIR_POINTS)]
                    return torch.stack([files[first].image(), files[second].image()]), points
        msg = f"No two views in {query.reference_dir} see {PAIR_POINTS} common points: render more views of the shape."
        raise ValueError(msg)

    def _read_gt_mask(self, query: QuerySample, image: Tensor) -> Tensor:
        """Read the union of the query's masks (256, 256); zeros if it has none."""
        for path in query.mask_paths:
            check_mask_size(path, query.image_path)
        mask = read_defect_mask(*query.mask_paths) if query.mask_paths else torch.zeros(image.shape[-2:])
        return resize_square(mask[None], QUERY_SIZE, nearest=True)[0]

    @property
    def collate_fn(self) -> Callable:
        """Function that collates items to a ``ViewBatch``."""
        return ViewBatch.collate


def _common_points(first: Correspondences, second: Correspondences) -> Tensor:
    """Return (row, column) in both views (n, 2, 2) of the points visible inside both images."""
    both = torch.stack([first.pixels, second.pixels], 1)
    inside = ((both >= 0) & (both < IMAGE_SIZE)).all(-1).all(-1)
    return both[inside & first.visible & second.visible]


def _read_box(query: QuerySample) -> Tensor | None:
    """Read a box (x_min, y_min, x_max, y_max) in pixels of the 256 x 256 query, clipped; None for a good query."""
    if query.annotation_path is None:
        return None
    stored: Any = read_json(query.annotation_path).get("2d_bbox")
    try:
        if not all(type(value) in {int, float} for value in stored):
            raise TypeError(stored)  # noqa: TRY301
        x, y, width, height = (float(value) for value in stored)
    except (TypeError, ValueError, OverflowError) as error:
        msg = f"{query.annotation_path} should have '2d_bbox': [x, y, width, height] in pixels, found {stored!r:.100}."
        raise ValueError(msg) from error
    if not all(map(math.isfinite, (x, y, width, height))) or max(abs(x) + abs(width), abs(y) + abs(height)) <= 1:
        msg = f"{query.annotation_path} should have '2d_bbox' in pixels of an image of 512 x 512, found {stored!r}."
        raise ValueError(msg)
    if min(x, y) < -_BOX_SLACK or max(x + width, y + height) > BOX_UNIT + _BOX_SLACK:
        _report_box(query.annotation_path, str(stored))
    box = torch.tensor([x, y, x + width, y + height]).clamp(0, BOX_UNIT) * (QUERY_SIZE / BOX_UNIT)
    if not bool((box[2:] > box[:2]).all()):
        msg = f"{query.annotation_path} has a '2d_bbox' without area inside the image: {stored!r}."
        raise ValueError(msg)
    return box


@cache
def _report_box(path: Path, box: str) -> None:
    """Log once that a box is partly outside of its image."""
    logger.warning("%s has a '2d_bbox' outside of the image of 512 x 512, which is cut at the border: %s.", path, box)


def _check_square(path: Path, image: Tensor) -> None:
    height, width = image.shape[-2:]
    if height != width:
        msg = f"Queries of BrokenChairs are square, {path} is {width} x {height}: pad it with white, and its masks."
        raise ValueError(msg)
