# SPDX-License-Identifier: Apache-2.0
"""References in the light of queries, as a fixed number of tensor operations."""

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare import shading
from anomalib_pose.compare.light import BIWEIGHT_LEAST, BIWEIGHT_LIMIT, MIN_PIXELS
from anomalib_pose.deploy.linear import solve_positive

_BRIGHTEST = 3.0  # sum of the residuals of three channels
_PARTS, _ROUNDS = 8, 8


def relit_in_windows(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b h w"],
    points: Float[Tensor, "b h w 3"],
) -> Float[Tensor, "b 3 h w"]:
    """What ``compare.relit`` gives, without a branch or a size that depends on the data.

    Pixels beside the object take part with no weight, and the median residual is found by narrowing a range down.

    Args:
        query: see ``compare.relit``.
        reference: see ``compare.relit``.
        alpha: see ``compare.relit``.
        points: see ``compare.relit``.
    """
    inside = (alpha > shading.INSIDE).to(query).flatten(1)
    basis = shading.light_basis(points, alpha)
    factors = _factors(query.flatten(2), reference.flatten(2), basis, inside)
    shades = (factors @ basis).clamp(*shading.SHADES).unflatten(2, query.shape[2:])
    enough = (inside.sum(1) >= MIN_PIXELS)[:, None, None, None]
    shades = torch.where(enough, shades, torch.ones_like(shades))
    return reference + alpha[:, None] * ((reference * shades).clamp(0, 1) - reference)


def _factors(
    query: Float[Tensor, "b 3 n"],
    reference: Float[Tensor, "b 3 n"],
    basis: Float[Tensor, "b k n"],
    inside: Float[Tensor, "b n"],
) -> Float[Tensor, "b 3 k"]:
    """Coefficients of each channel; where pixels tell nothing, those of the light as it was."""
    count, size = inside.sum(1), basis.shape[1]
    columns = reference[:, :, None] * basis[:, None]
    weight = inside
    unit = torch.eye(size, dtype=query.dtype, device=query.device)
    ridge = shading.RIDGE * count.clamp(min=1)
    factors = torch.zeros_like(columns[..., 0])
    for _ in range(shading.STEPS):
        weighted = columns * weight[:, None, None]
        products = weighted @ columns.transpose(2, 3) + ridge[:, None, None, None] * unit
        right = (weighted @ query[..., None])[..., 0] + ridge[:, None, None] * unit[0]
        factors = solve_positive(products.flatten(0, 1), right.flatten(0, 1), 0.0).unflatten(0, (-1, 3))
        residual = ((factors[:, :, None] @ columns)[:, :, 0] - query).abs().sum(1)
        scale = BIWEIGHT_LIMIT * _median(residual, inside, count)[:, None] + BIWEIGHT_LEAST
        weight = inside * (1 - (residual / scale).clamp(max=1).square()).square()
    return factors


def _median(
    values: Float[Tensor, "b n"], inside: Float[Tensor, "b n"], count: Float[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """Lower median of the values inside, to a millionth: weights change by more than a hundred times as much.

    Each round keeps one part of the range; more parts and fewer rounds make a smaller graph.
    """
    edges = torch.arange(1, _PARTS, dtype=values.dtype, device=values.device) / _PARTS
    low, width = torch.zeros_like(count), _BRIGHTEST
    for _ in range(_ROUNDS):
        below = values[:, None] <= (low[:, None] + width * edges)[:, :, None]
        few = (below.to(inside) @ inside[:, :, None])[..., 0] < 0.5 * count[:, None]
        width /= _PARTS
        low = low + width * few.to(low).sum(1)
    return low + width
