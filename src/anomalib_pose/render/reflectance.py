# SPDX-License-Identifier: Apache-2.0
"""Reflectance of an object, independent of the light, in closed form."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Decomposition = Callable[[Tensor], Tensor]
"""Function from images (B, 3, H, W), RGB in [0, 1], to the reflectances of their objects, of the same shape."""

_PATCH = 24  # pixels along a side; larger than the border that the published network repaints

OFFSET = 0.007
"""Default offset of ``reflectance``, fitted to the published network."""
_MAX_WEIGHT, _MEAN_WEIGHT = 0.52, 0.53


def reflectance(image: Float[Tensor, "b 3 h w"], offset: float = OFFSET) -> Float[Tensor, "b 3 h w"]:
    """Estimate reflectances in closed form: the image divided by ``0.52 max(RGB) + 0.53 mean(RGB) + offset``.

    The result approximates the published decomposition network (25 dB). All grays get the same value: only color
    remains.

    Args:
        image: RGB in [0, 1].
        offset: light below which the result fades to black; a larger offset suppresses the noise of dark images.
    """
    light = _MAX_WEIGHT * image.amax(1, keepdim=True) + _MEAN_WEIGHT * image.mean(1, keepdim=True)
    return (image / (light + offset)).clamp(0, 1)


def reflectance_of_color(color: Float[Tensor, "3"], decompose: Decomposition = reflectance) -> Float[Tensor, "3"]:
    """Estimate the reflectance of a uniform color.

    Args:
        color: RGB in [0, 1].
        decompose: function from images to reflectances.
    """
    patch = color[None, :, None, None].expand(1, 3, _PATCH, _PATCH)
    return decompose(patch)[0, :, _PATCH // 2, _PATCH // 2]
