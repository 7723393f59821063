# SPDX-License-Identifier: Apache-2.0
"""Comparison of whole photographs with a shape: crop to the network's view, and map its results back."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.tv_tensors import Image

from anomalib_pose.compare.query_content import MIN_SIDE, has_content, white_where
from anomalib_pose.data.images import read_image, square_margins
from anomalib_pose.data.masks import mask_of_image
from anomalib_pose.data.reference_views.dataclasses import ViewBatch, ViewItem
from anomalib_pose.data.reference_views.queries import (
    CROP_MARGIN,
    CROP_SIZE,
    QUERY_SIZE,
    evaluation_view,
    read_query,
)
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape, anomaly_map


class PhotographOutput(NamedTuple):
    """Predictions for whole photographs.

    Args:
        pred_score: probability of being anomalous (B,); 1 for a photograph without content, which is never good.
        anomaly_map: residual of each pixel (B, 1, H, W), in [0, 1].
        box: box around the anomaly (B, 4): center, width and height as fractions of the photograph.
    """

    pred_score: Tensor
    anomaly_map: Tensor
    box: Tensor


def read_photograph(path: str | Path, mask_dir: str | Path = "") -> Tensor:
    """Read a photograph with its object on white (3, H, W) in [0, 1].

    Args:
        path: the photograph.
        mask_dir: folder with a mask of the object, white on black, named like the photograph; empty if
            the photograph is transparent or white around the object.

    Raises:
        FileNotFoundError: if the photograph or its mask does not exist.
        ValueError: if a file cannot be read, mask and photograph differ in size, or the background is neither
            transparent nor white.
    """
    if not mask_dir:
        return read_query(path)
    mask = mask_of_image(Path(mask_dir), Path(path))
    if not mask.is_file():
        msg = f"mask_dir should have a mask of every photograph, but there is none of {path} at {mask}."
        raise FileNotFoundError(msg)
    return read_query(path, mask)


def read_photographs(paths: Sequence[Path]) -> ViewBatch:
    """Read a batch of photographs as they are; ``read_photograph`` separates their objects later.

    Raises:
        FileNotFoundError: if a photograph does not exist.
        ValueError: if a photograph cannot be read, or the photographs differ in size.
    """
    items = [ViewItem(image=Image(read_image(path)[0]), image_path=str(path)) for path in paths]
    return ViewBatch.collate(items)


def whole_map(maps: Tensor, height: int, width: int) -> Tensor:
    """Map anomaly maps back to whole photographs (B, 1, height, width); zero outside of the evaluated crop.

    Args:
        maps: maps of the images that ``evaluation_view`` returns (B, 1, 256, 256).
        height: height of the photograph in pixels.
        width: width of the photograph in pixels.
    """
    side, (top, left) = max(height, width), square_margins(height, width)
    small = functional.interpolate(maps, (CROP_SIZE, CROP_SIZE), mode="bilinear")
    square = functional.interpolate(functional.pad(small, [CROP_MARGIN] * 4), (side, side), mode="bilinear")
    return square[..., top : top + height, left : left + width]


def whole_box(boxes: Tensor, height: int, width: int) -> Tensor:
    """Map boxes back to fractions of the whole photograph (B, 4).

    Args:
        boxes: center, width and height as fractions of the evaluated crop (B, 4).
        height: height of the photograph in pixels.
        width: width of the photograph in pixels.
    """
    side, (top, left) = max(height, width), square_margins(height, width)
    margin = side * CROP_MARGIN / QUERY_SIZE
    offset = torch.tensor([margin - left, margin - top, 0, 0], device=boxes.device)
    return (boxes * (side * CROP_SIZE / QUERY_SIZE) + offset) / torch.tensor([width, height] * 2, device=boxes.device)


def inspect(network: Looking3DModel, images: Tensor, shape: ReferenceShape) -> PhotographOutput:
    """Compare whole photographs with one shape, in the crop of the evaluation.

    Args:
        network: network in evaluation mode.
        images: RGB (B, 3, H, W) in [0, 1], objects on white.
        shape: encoded reference.
    """
    height, width = images.shape[-2:]
    views = evaluation_view(images)
    decided = has_content(views) & (min(height, width) >= MIN_SIDE)
    output = network(white_where(~decided, views), shape)
    maps = whole_map(anomaly_map(output.residual), height, width)
    return PhotographOutput(
        torch.where(decided, output.logit.sigmoid(), 1.0), maps, whole_box(output.box, height, width)
    )
