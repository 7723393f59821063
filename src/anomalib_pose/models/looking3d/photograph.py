# SPDX-License-Identifier: Apache-2.0
"""The part of a photograph that the network sees, and what it found there in the whole photograph's frame.

In training the network sees random crops of 224 of 256 pixels, resized to 256. In evaluation it sees the middle one.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.models.looking3d.encoder import IMAGE_SIZE
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape, anomaly_map

CROP = 224
_MARGIN = (IMAGE_SIZE - CROP) // 2


class PhotographOutput(NamedTuple):
    """What is found in whole photographs.

    Args:
        pred_score: probability of being anomalous (B,).
        anomaly_map: how little each pixel resembles the shape (B, 1, H, W), in [0, 1].
        box: around the anomaly (B, 4): centre, width and height in parts of the photograph.
    """

    pred_score: Tensor
    anomaly_map: Tensor
    box: Tensor


def crop_query(images: Tensor) -> Tensor:
    """The middle of photographs, (B, 3, 256, 256).

    Args:
        images: RGB (B, 3, H, W) of any size.
    """
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if tuple(images.shape[-2:]) != size:
        images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    middle = images[..., _MARGIN : _MARGIN + CROP, _MARGIN : _MARGIN + CROP]
    return functional.interpolate(middle, size, mode="bilinear")


def whole_map(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps of the middle as maps of the whole photograph (B, 1, height, width); the margin gets zeros.

    Args:
        maps: of what ``crop_query`` gave (B, 1, 256, 256).
        height: of the photograph.
        width: of the photograph.
    """
    small = functional.interpolate(maps, (CROP, CROP), mode="bilinear")
    return functional.interpolate(functional.pad(small, [_MARGIN] * 4), (height, width), mode="bilinear")


def whole_box(boxes: Tensor) -> Tensor:
    """Boxes in parts of the middle as boxes in parts of the whole photograph (B, 4).

    Args:
        boxes: centre, width and height (B, 4).
    """
    offset = torch.tensor([_MARGIN, _MARGIN, 0, 0], device=boxes.device) / IMAGE_SIZE
    return boxes * (CROP / IMAGE_SIZE) + offset


def inspect(network: Looking3DModel, images: Tensor, shape: ReferenceShape) -> PhotographOutput:
    """Compare whole photographs with one shape.

    Args:
        network: in evaluation mode.
        images: RGB (B, 3, H, W) in [0, 1].
        shape: of the reference.
    """
    found = network(crop_query(images), shape)
    maps = whole_map(anomaly_map(found.residual), images.shape[-2], images.shape[-1])
    return PhotographOutput(found.logit.sigmoid(), maps, whole_box(found.box))
