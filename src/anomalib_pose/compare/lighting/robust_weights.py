# SPDX-License-Identifier: Apache-2.0
"""Robust weights of a least-squares fit of light."""

from jaxtyping import Float
from torch import Tensor

MIN_PIXELS = 50
"""Least number of an object's pixels from which its light is estimated."""
BIWEIGHT_LIMIT = 4.685 * 1.4826  # times the median residual; larger residuals have weight 0
BIWEIGHT_LEAST = 0.01  # added to the limit, so that a median of 0 causes no division by 0


def biweight(residual: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Compute Tukey's biweights of color residuals; the scale is their median.

    Args:
        residual: absolute residuals, 0 or more.
    """
    scale = BIWEIGHT_LIMIT * residual.median() + BIWEIGHT_LEAST
    return (1 - (residual / scale).clamp(max=1).square()).square()
