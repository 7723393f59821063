# SPDX-License-Identifier: Apache-2.0
"""Removing a difference in light between photograph and rendering."""

import torch
from jaxtyping import Float
from torch import Tensor

MIN_PIXELS = 50
GAIN_RANGE = (0.5, 2.0)
BIWEIGHT_LIMIT = 4.685 * 1.4826  # of the median residual; beyond it nothing counts
BIWEIGHT_LEAST = 0.01


@torch.no_grad()
def match_light(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b h w"],
    iterations: int = 5,
) -> Float[Tensor, "b 3 h w"]:
    """Query with the gain and offset of each channel removed that best explain it from the reference.

    Fitted to the object's pixels by least squares, reweighted so that defects hardly count (Tukey's biweight, scale
    from the median absolute residual). The gain stays within 0.5 to 2; an object of a few pixels is left as it is. Only
    the object's pixels are changed, in the measure of alpha.

    Args:
        query: photographs, RGB in [0, 1].
        reference: their renderings, RGB in [0, 1].
        alpha: opacity of the object.
        iterations: of the reweighting.
    """
    corrected = query.clone()
    for index in range(len(query)):
        inside = alpha[index] > 0.9
        if int(inside.sum()) < MIN_PIXELS:
            continue
        for channel in range(3):
            gain, offset = _gain_offset(query[index, channel][inside], reference[index, channel][inside], iterations)
            moved = query[index, channel] * gain + offset
            corrected[index, channel] = torch.lerp(query[index, channel], moved, alpha[index])
    return corrected.clamp(0, 1)


def _gain_offset(query: Tensor, reference: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    weight = torch.ones_like(query)
    gain, offset = torch.ones_like(query[0]), torch.zeros_like(query[0])
    for _ in range(iterations):
        total = weight.sum().clamp(min=1e-6)
        query_mean, reference_mean = (weight * query).sum() / total, (weight * reference).sum() / total
        centered = query - query_mean
        # a flat channel tells nothing about its gain: the small constant keeps it at 1
        variance = (weight * centered.square()).sum() / total + 1e-4
        covariance = (weight * centered * (reference - reference_mean)).sum() / total + 1e-4
        gain = (covariance / variance).clamp(*GAIN_RANGE)
        offset = reference_mean - gain * query_mean
        residual = (gain * query + offset - reference).abs()
        weight = biweight(residual)
    return gain, offset


def biweight(residual: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Tukey's weights of residuals of colors, which are not negative; scale from their median."""
    scale = BIWEIGHT_LIMIT * residual.median() + BIWEIGHT_LEAST
    return (1 - (residual / scale).clamp(max=1).square()).square()
