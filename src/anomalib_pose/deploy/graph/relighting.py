# SPDX-License-Identifier: Apache-2.0
"""Relighting of references to the light of their queries, as a fixed number of tensor operations.

Twin: ``anomalib_pose.compare.lighting.shading.relight_reference``. Both agree to 1e-4 in color.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare.lighting import shading
from anomalib_pose.compare.lighting.robust_weights import BIWEIGHT_LEAST, BIWEIGHT_LIMIT, MIN_PIXELS
from anomalib_pose.deploy.graph.linear_solver import solve_positive

_LARGEST_RESIDUAL = 3.0  # sum of the absolute residuals of three channels
_PARTS, _ROUNDS = 16, 5


def relight_reference(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b h w"],
    points: Float[Tensor, "b h w 3"],
    steps: int = shading.STEPS,
) -> Float[Tensor, "b 3 h w"]:
    """Relight references as the twin does, without a branch or a size that depends on the data.

    Pixels beside the object have weight zero. The median residual is found by successive division of its range.

    Args:
        query: see the twin.
        reference: see the twin.
        alpha: see the twin.
        points: see the twin.
        steps: steps of the reweighted fit; each adds its operations to the graph.
    """
    inside = (alpha > shading.INSIDE).to(query).flatten(1)
    basis = shading.light_basis(points, alpha)
    factors = _factors(query.flatten(2), reference.flatten(2), basis, inside, steps)
    shades = (factors @ basis).clamp(*shading.SHADES).unflatten(2, query.shape[2:])
    enough = (inside.sum(1) >= MIN_PIXELS)[:, None, None, None]
    shades = torch.where(enough, shades, torch.ones_like(shades))
    return reference + alpha[:, None] * ((reference * shades).clamp(0, 1) - reference)


def _factors(
    query: Float[Tensor, "b 3 n"],
    reference: Float[Tensor, "b 3 n"],
    basis: Float[Tensor, "b k n"],
    inside: Float[Tensor, "b n"],
    steps: int,
) -> Float[Tensor, "b 3 k"]:
    """Fit the coefficients of each channel; without information from the pixels, the light stays unchanged."""
    count, size = inside.sum(1), basis.shape[1]
    columns = reference[:, :, None] * basis[:, None]
    weight, query_columns = inside, query[..., None]
    unit = torch.eye(size, dtype=query.dtype, device=query.device)
    ridge = shading.RIDGE * count.clamp(min=1)
    ridge_matrix, ridge_right = ridge[:, None, None, None] * unit, ridge[:, None, None] * unit[0]
    factors = torch.zeros_like(columns[..., 0])
    for _ in range(steps):
        weighted = columns * weight[:, None, None]
        products = weighted @ columns.transpose(2, 3) + ridge_matrix
        right = (weighted @ query_columns).squeeze(3) + ridge_right
        factors = solve_positive(products.flatten(0, 1), right.flatten(0, 1), 0.0).unflatten(0, (-1, 3))
        residual = ((factors[:, :, None] @ columns).squeeze(2) - query).abs().sum(1)
        scale = BIWEIGHT_LIMIT * _median(residual, inside, count)[:, None] + BIWEIGHT_LEAST
        weight = inside * (1 - (residual / scale).clamp(max=1).square()).square()
    return factors


def _median(
    values: Float[Tensor, "b n"], inside: Float[Tensor, "b n"], count: Float[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Return the lower median of the values inside, to 3 / 16**5 = 3e-6.

    Differences that matter to the robust weights are more than a hundred times larger. Each round divides the range
    into ``_PARTS`` and keeps one of them. More parts with fewer rounds make a smaller graph.
    """
    edges = torch.arange(1, _PARTS, dtype=values.dtype, device=values.device)[:, None] / _PARTS
    values, inside, half = values[:, None], inside[:, :, None], 0.5 * count[:, None, None]
    low, width = torch.zeros_like(half), _LARGEST_RESIDUAL
    for _ in range(_ROUNDS):
        below = (values <= low + width * edges).to(inside) @ inside
        width /= _PARTS
        low = low + width * (below < half).to(low).sum(1, keepdim=True)
    return (low + width).flatten()
