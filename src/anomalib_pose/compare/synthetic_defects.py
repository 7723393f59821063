# SPDX-License-Identifier: Apache-2.0
"""Defects drawn on good views."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_SMALLEST, _LARGEST = 0.03, 0.12


def add_synthetic_defects(images: Float[Tensor, "n 3 h w"], seed: int) -> Float[Tensor, "n 3 h w"]:
    """Copies with a soft-edged ellipse each that takes another color, or another part of the object, or goes missing.

    They are no model of real defects: they give scores beyond those of good views, to compare two ways of scoring with.

    Args:
        images: good views, RGB in [0, 1].
        seed: of place, size and kind.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = images.shape[-2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    results = []
    for number, image in enumerate(images.cpu()):
        border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1).median(1).values
        shown = ((image - border[:, None, None]).abs().amax(0) > 0.1).nonzero()
        shown = shown if len(shown) else torch.tensor([[height // 2, width // 2]])
        row, column = shown[int(torch.randint(len(shown), (), generator=generator))].tolist()
        extent = torch.empty(2).uniform_(_SMALLEST, _LARGEST, generator=generator) * max(height, width)
        angle = float(torch.rand((), generator=generator)) * math.pi
        x, y = columns - column, rows - row
        across = (x * math.cos(angle) + y * math.sin(angle)) / extent[0]
        along = (y * math.cos(angle) - x * math.sin(angle)) / extent[1]
        share = torch.sigmoid(8 * (1 - (across.square() + along.square()).sqrt()))
        color = torch.rand(3, generator=generator)[:, None, None].expand_as(image)
        other = (color, image.roll((height // 6, width // 6), (1, 2)), border[:, None, None].expand_as(image))[
            number % 3
        ]
        results.append(torch.lerp(image, other, share * (0.5 + 0.5 * float(torch.rand((), generator=generator)))))
    return torch.stack(results).to(images)
