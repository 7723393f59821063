# SPDX-License-Identifier: Apache-2.0
"""What the layers of the calibrated comparison are made of, and how much each counts."""

from jaxtyping import Float
from kornia.color import rgb_to_lab
from kornia.filters import gaussian_blur2d, spatial_gradient
from torch import Tensor

from anomalib_pose.compare.maps import largest_around

_SAME_COLoR = 0.05  # difference of a channel above which a pixel surely shows something else


def layer_weights_of(
    image: tuple[float, ...], experts: list[tuple[float, tuple[float, ...], int]], feature_mix: float
) -> tuple[float, ...]:
    """Weights of all layers, which sum to 1.

    Args:
        image: of color, structure and what else is compared without a network.
        experts: share, weights (empty for half of the one before) and number of the stages of each network.
        feature_mix: share of the networks, in [0, 1].

    Raises:
        ValueError: if a weight is negative, all are 0, or there is not one for each stage.
    """
    if not 0 <= feature_mix <= 1:
        msg = f"feature_mix should be in [0, 1], got {feature_mix}."
        raise ValueError(msg)
    if min(image) < 0 or sum(image) <= 0:
        msg = f"The weights of the image's layers should not be negative nor all 0, got {image}."
        raise ValueError(msg)
    mix = feature_mix if experts else 0.0
    parts = [weight / sum(image) * (1 - mix) for weight in image]
    for share, given, stages in experts:
        features = tuple(given) or tuple(0.5**stage for stage in range(stages))
        if len(features) != stages or min(features) < 0 or sum(features) <= 0:
            msg = f"layer_weights should hold a weight >= 0 for each of {stages} layers, not all 0, got {features}."
            raise ValueError(msg)
        parts += [weight / sum(features) * mix * share for weight in features]
    return tuple(parts)


def shown(
    query: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], alpha: Float[Tensor, "b h w"]
) -> Float[Tensor, "b h w"]:
    """0 where both images show nothing but the same background, 1 where one of them shows anything.

    Features see what is around them: without this, what differs at the rim of a hole would be found in its middle.

    Args:
        query: RGB in [0, 1].
        reference: RGB in [0, 1].
        alpha: opacity of the object in the reference, in [0, 1].
    """
    differs = ((query - reference).abs().amax(1) / _SAME_COLoR).clamp(0, 1)
    return 1 - (1 - (2 * alpha).clamp(0, 1)) * (1 - differs)


def lab(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """CIELAB of RGB in [0, 1], divided by 100: lightness in [0, 1]."""
    return rgb_to_lab(image.clamp(0, 1)) / 100


def contrast(reference: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    """Largest slope of the lightness in the neighborhood of each pixel of an image, RGB in [0, 1]."""
    return largest_around(gradient(lab(reference)).norm(dim=1), 5)


def gradient(colors: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
    """Slope a pixel of the slightly smoothed lightness, which is the first channel."""
    smooth = gaussian_blur2d(colors[:, :1], (5, 5), (1.0, 1.0), border_type="replicate")
    return spatial_gradient(smooth, "sobel", normalized=True)[:, 0]
