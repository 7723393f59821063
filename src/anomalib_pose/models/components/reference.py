# SPDX-License-Identifier: Apache-2.0
"""What queries of scene models are compared with."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Reference(NamedTuple):
    """The defect-free object as a camera sees it, or as several do, with a leading axis then.

    Args:
        rgb: over white (3, H, W).
        alpha: opacity (H, W).
        points: of the surface (H, W, 3), world frame.
        doubt: by how much it differs from all photographs of the same place (H, W); 0 where there are none to ask.
    """

    rgb: Tensor
    alpha: Tensor
    points: Tensor
    doubt: Tensor


def stacked(references: Iterable[Reference]) -> Reference:
    """References of several cameras as one, with a leading axis."""
    return Reference(*map(torch.stack, zip(*references, strict=True)))
