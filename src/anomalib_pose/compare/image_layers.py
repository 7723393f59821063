# SPDX-License-Identifier: Apache-2.0
"""Image layers of the calibrated comparison: CIELAB colors, lightness gradient, local contrast, foreground."""

from jaxtyping import Float
from kornia.color import rgb_to_lab
from kornia.filters import gaussian_blur2d, spatial_gradient
from torch import Tensor

from anomalib_pose.compare.maps import largest_around

_DIFFERENT_COLOR = 0.05  # difference of a channel above which two pixels certainly show different things


def foreground_of_either(
    query: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], alpha: Float[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """Compute a soft mask: 0 where both images show the same background, 1 where either image shows an object.

    A feature depends on the pixels around it. Without this mask, a residual at the rim of a hole would spread into the
    hole.

    Args:
        query: RGB in [0, 1].
        reference: RGB in [0, 1].
        alpha: opacity of the object in the reference, in [0, 1].
    """
    different = ((query - reference).abs().amax(1) / _DIFFERENT_COLOR).clamp(0, 1)
    return 1 - (1 - (2 * alpha).clamp(0, 1)) * (1 - different)


def lab(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert RGB in [0, 1] to CIELAB divided by 100, with the lightness in [0, 1]."""
    return rgb_to_lab(image.clamp(0, 1)) / 100


def contrast(reference: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """Compute the largest lightness gradient in the 5 by 5 pixels around each pixel of an RGB image in [0, 1]."""
    return largest_around(gradient(lab(reference)).norm(dim=1), 5)


def gradient(colors: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Compute the gradient per pixel of the slightly smoothed lightness, the first channel of CIELAB colors."""
    smooth = gaussian_blur2d(colors[:, :1], (5, 5), (1.0, 1.0), border_type="replicate")
    return spatial_gradient(smooth, "sobel", normalized=True)[:, 0]
