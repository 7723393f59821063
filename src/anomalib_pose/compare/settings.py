# SPDX-License-Identifier: Apache-2.0
"""Settings of the calibrated comparator."""

from dataclasses import dataclass

MIN_WINDOW = 32


@dataclass(frozen=True)
class WindowSettings:
    """The window around the object that is compared.

    Args:
        size: side in pixels that the window is resized to.
        margin: width added to the window on each side, as a fraction of the object's longer side.

    Raises:
        ValueError: if the size is below 32 pixels or the margin is negative.
    """

    size: int = 256
    margin: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.size < MIN_WINDOW or self.margin < 0:
            msg = (
                f"A window needs a size of {MIN_WINDOW} pixels or more and a margin of 0 or more, got "
                f"size={self.size} and margin={self.margin}."
            )
            raise ValueError(msg)


@dataclass(frozen=True)
class LayerWeights:
    """Weights of the residual maps in the anomaly map.

    Args:
        color: weight of the color in CIELAB.
        structure: weight of the gradient of the lightness.
        reflectance: weight of the reflectance, which does not depend on the light; 0 leaves it out.
        features: weight of each layer of the network. Empty halves the weight from each layer to the next: fine layers
            detect small defects.
        feature_mix: mixing weight of the networks, in [0, 1]; color, structure and reflectance share the rest.
        second_mix: mixing weight of the second network within ``feature_mix``, in [0, 1], if there are two networks.

    Raises:
        ValueError: if a weight is negative or above its range, or the weights of color, structure and reflectance are
            all 0.
    """

    color: float = 1.0
    structure: float = 1.0
    reflectance: float = 0.0
    features: tuple[float, ...] = ()
    feature_mix: float = 0.7
    second_mix: float = 0.5

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("feature_mix", "second_mix"):
            if not 0 <= getattr(self, name) <= 1:
                msg = f"{name} should be in [0, 1], got {getattr(self, name)}."
                raise ValueError(msg)
        if min(self.image_weights) < 0 or sum(self.image_weights) <= 0:
            msg = (
                "The weights of color, structure and reflectance should be 0 or more, and not all 0, got "
                f"{self.image_weights}."
            )
            raise ValueError(msg)

    @property
    def image_weights(self) -> tuple[float, ...]:
        """Weights of the residual maps that need no network: color, structure, and reflectance if above 0."""
        weights = (self.color, self.structure)
        return (*weights, self.reflectance) if self.reflectance else weights

    def normalized(self, layer_counts: tuple[int, ...]) -> tuple[float, ...]:
        """Return the weight of each residual map, image layers before network layers; they sum to 1.

        Args:
            layer_counts: number of layers of each network: of none, of one, or of the first and the second.

        Raises:
            ValueError: if ``features`` does not hold one weight for each layer, or has a negative weight or only zeros.
        """
        feature_mix = self.feature_mix if layer_counts else 0.0
        mixing_weights = (1 - self.second_mix, self.second_mix) if len(layer_counts) == 2 else (1.0,)
        normalized = [weight / sum(self.image_weights) * (1 - feature_mix) for weight in self.image_weights]
        for index, (count, mixing_weight) in enumerate(zip(layer_counts, mixing_weights, strict=False)):
            features = (self.features if index == 0 else ()) or tuple(0.5**layer for layer in range(count))
            if len(features) != count or min(features) < 0 or sum(features) <= 0:
                msg = f"features should hold {count} weights of 0 or more, one for each layer, got {features}."
                raise ValueError(msg)
            normalized += [weight / sum(features) * feature_mix * mixing_weight for weight in features]
        return tuple(normalized)


@dataclass(frozen=True)
class ScoringSettings:
    """Settings that turn residual maps into an anomaly map and a score.

    Args:
        tolerance: largest tolerated shift between query and reference, in pixels of the window; 0 for none.
        self_normalization: divide each layer by 1 + this factor times its level, the squared mean of the square roots
            inside the object. Another light or a small pose error raises a layer everywhere; even a large defect raises
            it in one place. 0 for no division.
        blur_sigma: standard deviation of the Gaussian that smooths the map, in pixels of the window.
        top_fraction: the score is the mean of the largest pixels, as many as this fraction of the object's pixels.

    Raises:
        ValueError: if a value is negative, or ``top_fraction`` is not in (0, 1].
    """

    tolerance: float = 1.0
    self_normalization: float = 1.0
    blur_sigma: float = 2.0
    top_fraction: float = 0.001

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < self.top_fraction <= 1:
            msg = f"top_fraction should be in (0, 1], got {self.top_fraction}."
            raise ValueError(msg)
        if min(self.tolerance, self.self_normalization, self.blur_sigma) < 0:
            msg = (
                "tolerance, self_normalization and blur_sigma should not be negative, "
                f"got {self.tolerance}, {self.self_normalization} and {self.blur_sigma}."
            )
            raise ValueError(msg)
