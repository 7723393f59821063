# SPDX-License-Identifier: Apache-2.0
"""Synthetic defects on normal views."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_SMALLEST, _LARGEST = 0.03, 0.12  # semi-axes of a defect, as fractions of the longer side of the image
_EDGE_SHARPNESS = 8
_BACKGROUND_TOLERANCE = 0.1  # color difference from the border's median above which a pixel belongs to the object


def add_synthetic_defects(images: Float[Tensor, "n 3 h w"], seed: int) -> Float[Tensor, "n 3 h w"]:
    """Copy images, with one soft-edged elliptic defect each.

    The defects are in turn a color, a shifted copy of the image, and the background color. They do not model real
    defects. They give scores above those of normal views, to compare two ways of scoring.

    Args:
        images: normal views, RGB in [0, 1].
        seed: seed of the places, sizes, colors and strengths.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    results = []
    for number, image in enumerate(images.cpu()):
        border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1).median(1).values
        background = border[:, None, None]
        object_pixels = ((image - background).abs().amax(0) > _BACKGROUND_TOLERANCE).nonzero()
        object_pixels = object_pixels if len(object_pixels) else torch.tensor([[height // 2, width // 2]])
        row, column = object_pixels[int(torch.randint(len(object_pixels), (), generator=generator))].tolist()
        semi_axes = torch.empty(2).uniform_(_SMALLEST, _LARGEST, generator=generator) * max(height, width)
        angle = float(torch.rand((), generator=generator)) * math.pi
        x, y = columns - column, rows - row
        across = (x * math.cos(angle) + y * math.sin(angle)) / semi_axes[0]
        along = (y * math.cos(angle) - x * math.sin(angle)) / semi_axes[1]
        mask = torch.sigmoid(_EDGE_SHARPNESS * (1 - (across.square() + along.square()).sqrt()))
        color = torch.rand(3, generator=generator)[:, None, None].expand_as(image)
        shifted_copy = image.roll((height // 6, width // 6), (1, 2))
        defect = (color, shifted_copy, background.expand_as(image))[number % 3]
        results.append(torch.lerp(image, defect, mask * (0.5 + 0.5 * float(torch.rand((), generator=generator)))))
    return torch.stack(results).to(images)
