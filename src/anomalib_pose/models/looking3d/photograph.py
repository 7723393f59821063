# SPDX-License-Identifier: Apache-2.0
"""What the network finds in the part of a photograph that it sees, in the whole photograph's frame."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.data.images import square_margins
from anomalib_pose.data.reference_views.queries import (
    CROP_MARGIN,
    CROP_SIZE,
    QUERY_SIZE,
    evaluation_view,
    read_query,
)
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape, anomaly_map


class PhotographOutput(NamedTuple):
    """What is found in whole photographs.

    Args:
        pred_score: probability of being anomalous (B,).
        anomaly_map: how little each pixel resembles the shape (B, 1, H, W), in [0, 1].
        box: around the anomaly (B, 4): center, width and height in parts of the photograph.
    """

    pred_score: Tensor
    anomaly_map: Tensor
    box: Tensor


def read_photograph(path: str | Path, mask_dir: str | Path = "") -> Tensor:
    """Read a photograph as a query (3, H, W) in [0, 1] on white.

    Args:
        path: the photograph.
        mask_dir: folder with a mask of its object, white on black, of the photograph's name but ``.png``; empty if the
            photograph is transparent or white around the object.

    Raises:
        FileNotFoundError: if the photograph or its mask is not there.
        ValueError: if a file cannot be read, mask and photograph differ in size, or nothing tells the object from the
            background.
    """
    if not mask_dir:
        return read_query(path)
    mask = Path(mask_dir) / f"{Path(path).stem}.png"
    if not mask.is_file():
        msg = f"mask_dir should have a mask of every photograph: there is none of {path} at {mask}."
        raise FileNotFoundError(msg)
    return read_query(path, mask)


def whole_map(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps of what evaluation shows as maps of whole photographs (B, 1, height, width), zero where it shows nothing.

    Args:
        maps: of what ``evaluation_view`` gave (B, 1, 256, 256).
        height: of the photograph.
        width: of the photograph.
    """
    side, (top, left) = max(height, width), square_margins(height, width)
    small = functional.interpolate(maps, (CROP_SIZE, CROP_SIZE), mode="bilinear")
    square = functional.interpolate(functional.pad(small, [CROP_MARGIN] * 4), (side, side), mode="bilinear")
    return square[..., top : top + height, left : left + width]


def whole_box(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes in parts of what evaluation shows as boxes in parts of the whole photograph (B, 4).

    Args:
        boxes: center, width and height (B, 4).
        height: of the photograph.
        width: of the photograph.
    """
    side, (top, left) = max(height, width), square_margins(height, width)
    margin = side * CROP_MARGIN / QUERY_SIZE
    offset = torch.tensor([margin - left, margin - top, 0, 0], device=boxes.device)
    return (boxes * (side * CROP_SIZE / QUERY_SIZE) + offset) / torch.tensor([width, height] * 2, device=boxes.device)


def inspect(network: Looking3DModel, images: Tensor, shape: ReferenceShape) -> PhotographOutput:
    """Compare whole photographs with one shape; they are seen as the queries of evaluation are.

    Args:
        network: in evaluation mode.
        images: RGB (B, 3, H, W) in [0, 1], objects on white.
        shape: of the reference.
    """
    height, width = images.shape[-2:]
    found = network(evaluation_view(images), shape)
    maps = whole_map(anomaly_map(found.residual), height, width)
    return PhotographOutput(found.logit.sigmoid(), maps, whole_box(found.box, height, width))
