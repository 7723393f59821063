# SPDX-License-Identifier: Apache-2.0
"""Fixed-point numbers, stored as integers.

An export in half precision rounds floating-point constants and leaves integers alone. These functions have no twin:
``from_fixed(to_fixed(x))`` is ``x`` to half of ``2 ** -20``.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_ONE = 2.0**20


def to_fixed(values: Float[Tensor, "*s"]) -> Int[Tensor, "*s"]:
    """Convert numbers in (-2048, 2048) to integers, in steps of ``2 ** -20`` (about a millionth).

    Args:
        values: floating-point numbers.
    """
    return (values.double() * _ONE).round().to(torch.int32)


def from_fixed(fixed: Int[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Convert the integers of ``to_fixed`` back to single precision.

    Args:
        fixed: integers in steps of ``2 ** -20``.
    """
    return fixed.float() / _ONE
