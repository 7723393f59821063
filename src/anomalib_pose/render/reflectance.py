# SPDX-License-Identifier: Apache-2.0
"""What an object reflects, whatever the light, in closed form."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Decomposition = Callable[[Tensor], Tensor]
"""Takes images (B, 3, H, W), RGB in [0, 1], to what their objects reflect, of the same shape."""

_PATCH = 24  # pixels along a side, more than the border that the published network repaints

OFFSET = 0.007
"""Fitted to the published network."""
_MAX_SHARE, _MEAN_SHARE = 0.52, 0.53


def reflectance(image: Float[Tensor, "b 3 h w"], offset: float = OFFSET) -> Float[Tensor, "b 3 h w"]:
    """Closed form of the decomposition: the image divided by ``0.52 max(RGB) + 0.53 mean(RGB) + offset``.

    It is about what the published network does (25 dB). All grays become one: only color is left.

    Args:
        image: RGB in [0, 1].
        offset: light below which the result fades to black; a larger one keeps the noise of dark images down.
    """
    light = _MAX_SHARE * image.amax(1, keepdim=True) + _MEAN_SHARE * image.mean(1, keepdim=True)
    return (image / (light + offset)).clamp(0, 1)


def reflectance_of_color(color: Float[Tensor, "3"], decompose: Decomposition = reflectance) -> Float[Tensor, "3"]:
    """What an evenly colored image reflects.

    Args:
        color: RGB in [0, 1].
        decompose: how images are decomposed.
    """
    patch = color[None, :, None, None].expand(1, 3, _PATCH, _PATCH)
    return decompose(patch)[0, :, _PATCH // 2, _PATCH // 2]
