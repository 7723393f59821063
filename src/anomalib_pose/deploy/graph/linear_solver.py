# SPDX-License-Identifier: Apache-2.0
"""Small linear systems as a fixed number of tensor operations: runtimes have no solver."""

import torch
from jaxtyping import Float
from torch import Tensor


def solve_positive(
    matrix: Float[Tensor, "b n n"], right: Float[Tensor, "b n"], damping: Float[Tensor, " b"] | float
) -> Float[Tensor, "b n"]:
    """``(A + damping diag A)^-1 y`` of symmetric positive definite matrices by Gauss-Jordan elimination.

    Args:
        matrix: A.
        right: y.
        damping: share of the diagonal that is added to it.
    """
    size = matrix.shape[1]
    scale = 1 / (matrix.diagonal(dim1=1, dim2=2) + 1e-12).sqrt()
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    added = damping if isinstance(damping, float) else damping[:, None, None]
    scaled = matrix * scale[:, :, None] * scale[:, None] + added * eye
    table = torch.cat([scaled, (right * scale)[:, :, None]], 2)
    for pivot in range(size):
        row = table.narrow(1, pivot, 1)
        row = row / row.narrow(2, pivot, 1)
        # the pivot's own row becomes ``row``
        table = table - (table.narrow(2, pivot, 1) - eye.narrow(1, pivot, 1)) * row
    return table[:, :, size] * scale
