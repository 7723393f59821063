# SPDX-License-Identifier: Apache-2.0
"""Anomaly maps where the reference itself is doubtful."""

from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare.maps import gaussian_blur, largest_around

_AROUND = 0.015  # of the longer side: features of pixels around a doubtful one see it too
_SOFT = 0.0075  # of the longer side
_HALF = 0.05  # difference of a channel by which what is found counts half; noise and gloss differ by less


def discounted(anomaly_map: Float[Tensor, "b h w"], doubt: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Maps in which what is found counts the less, the less photographs agree with the reference there.

    Args:
        anomaly_map: of queries.
        doubt: differences of their references from all photographs of the same place, as parts of a color's range.
    """
    size = max(doubt.shape[-2:])
    around = largest_around(doubt, 2 * round(_AROUND * size / 2) + 1)
    return anomaly_map / (1 + gaussian_blur(around, _SOFT * size) / _HALF)
