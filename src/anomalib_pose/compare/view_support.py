# SPDX-License-Identifier: Apache-2.0
"""Attenuation of anomaly maps where no training view supports the reference."""

from jaxtyping import Float
from torch import Tensor

from anomalib_pose.compare.maps import gaussian_blur_mirrored, largest_around

_DILATION = 0.015  # of the longer side: features of the pixels around an unsupported pixel depend on it too
_BLUR_SIGMA = 0.0075  # of the longer side
_HALF_WEIGHT_RESIDUAL = 0.05  # support residual that halves the map; image noise and gloss stay below it


def attenuate_unsupported(
    anomaly_map: Float[Tensor, "b h w"], support_residual: Float[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """Divide anomaly maps by a factor that grows with the support residual of the reference.

    The factor is 1 where a training view supports the reference, and 2 at a support residual of 0.05.

    Args:
        anomaly_map: maps of the queries.
        support_residual: color differences between each reference and the training views; see ``Reference``.
    """
    size = max(support_residual.shape[-2:])
    dilated = largest_around(support_residual, 2 * round(_DILATION * size / 2) + 1)
    return anomaly_map / (1 + gaussian_blur_mirrored(dilated, _BLUR_SIGMA * size) / _HALF_WEIGHT_RESIDUAL)
