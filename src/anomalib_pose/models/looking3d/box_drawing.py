# SPDX-License-Identifier: Apache-2.0
"""Bounding boxes drawn into images."""

import torch
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.utils import draw_bounding_boxes

_TRUE, _PREDICTED = "green", "red"


def draw_boxes(images: Tensor, boxes: Tensor, anomalous: Tensor, true_boxes: Tensor | None = None) -> Tensor:
    """Draw the predicted box of each anomalous image in red, and the true box in green: (B, 3, H, W).

    Args:
        images: RGB (B, 3, H, W) in [0, 1].
        boxes: predicted center, width and height (B, 4), as fractions of the image.
        anomalous: whether the image is predicted to be anomalous (B,).
        true_boxes: true boxes (B, 4), zeros for no box; None if unknown.
    """
    height, width = images.shape[-2:]
    scale = torch.tensor([width, height, width, height])
    pictures = []
    for index, image in enumerate(images.detach().cpu().clamp(0, 1)):
        by_color = {}
        if true_boxes is not None and bool((true_boxes[index, 2:] > 0).all()):
            by_color[_TRUE] = true_boxes[index]
        if bool(anomalous[index]):
            by_color[_PREDICTED] = boxes[index]
        if not by_color:
            pictures.append(image)
            continue
        corners = box_convert(torch.stack(list(by_color.values())).detach().cpu().float(), "cxcywh", "xyxy")
        # torchvision truncates, and 20 may arrive as 19.999998
        pixels = (corners.clamp(0, 1) * scale).round()
        line = max(1, min(height, width) // 100)
        pictures.append(draw_bounding_boxes(image, pixels, colors=list(by_color), width=line))
    return torch.stack(pictures).to(images.device)
