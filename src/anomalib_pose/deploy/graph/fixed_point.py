# SPDX-License-Identifier: Apache-2.0
"""Numbers as integers, which an export in half precision leaves alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ONE = 2.0**20


def to_fixed(numbers: Float[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """Numbers in (-2048, 2048) in steps of a millionth."""
    return (numbers.double() * _ONE).round().to(torch.int32)


def from_fixed(numbers: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """What ``to_fixed`` was given, to a millionth."""
    return numbers.float() / _ONE
