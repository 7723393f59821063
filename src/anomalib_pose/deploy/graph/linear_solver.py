# SPDX-License-Identifier: Apache-2.0
"""Solver of small linear systems as a fixed number of tensor operations; the runtimes have no solver.

Twin: ``torch.linalg.solve``. In double precision both agree to a relative 1e-8.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def solve_positive(
    matrix: Float[Tensor, "b n n"], right: Float[Tensor, "b n"], damping: Float[Tensor, " b"] | float
) -> Float[Tensor, "b n"]:
    """Solve ``(A + damping diag A) x = y`` for symmetric positive definite ``A`` by Gauss-Jordan elimination.

    Args:
        matrix: A.
        right: y.
        damping: fraction of the diagonal that is added to the diagonal.
    """
    size = matrix.shape[1]
    scale = 1 / (matrix.diagonal(dim1=1, dim2=2) + 1e-12).sqrt()
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    ridge = damping if isinstance(damping, float) else damping[:, None, None]
    scaled = matrix * scale[:, :, None] * scale[:, None] + ridge * eye
    augmented = torch.cat([scaled, (right * scale)[:, :, None]], 2)
    for pivot in range(size):
        row = augmented.narrow(1, pivot, 1)
        row = row / row.narrow(2, pivot, 1)
        # subtracting ``eye`` turns the pivot's own row into ``row``
        augmented = augmented - (augmented.narrow(2, pivot, 1) - eye.narrow(1, pivot, 1)) * row
    return augmented[:, :, size] * scale
