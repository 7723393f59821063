# SPDX-License-Identifier: Apache-2.0
"""Boxes in pictures."""

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes

_TRUE, _FOUND = "green", "red"


def draw_boxes(images: Tensor, found: Tensor, anomalous: Tensor, truth: Tensor | None = None) -> Tensor:
    """Images (B, 3, H, W) with the box that was found in red where something was, and the true one in green.

    Args:
        images: RGB (B, 3, H, W) in [0, 1].
        found: middle, width and height (B, 4) in parts of the image.
        anomalous: whether the image is taken for anomalous (B,).
        truth: true boxes (B, 4), zeros where there is none; None if nobody knows.
    """
    height, width = images.shape[-2:]
    scale = torch.tensor([width, height, width, height])
    drawn = []
    for index, image in enumerate(images.detach().cpu().clamp(0, 1)):
        boxes = {}
        if truth is not None and bool((truth[index, 2:] > 0).all()):
            boxes[_TRUE] = truth[index]
        if bool(anomalous[index]):
            boxes[_FOUND] = found[index]
        if not boxes:
            drawn.append(image)
            continue
        corners = box_convert(torch.stack(list(boxes.values())).detach().cpu().float(), "cxcywh", "xyxy")
        pixels = (corners.clamp(0, 1) * scale).round()  # they would be cut off, and 20 comes as 19.999998
        drawn.append(draw_bounding_boxes(image, pixels, colors=list(boxes), width=max(1, min(height, width) // 100)))
    return torch.stack(drawn).to(images.device)
