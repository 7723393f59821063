# SPDX-License-Identifier: Apache-2.0
"""Comparison that knows how good views differ from their renderings."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.compare.crop import ObjectCrop
from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.layers import contrast, gradient, lab, layer_weights_of, shown
from anomalib_pose.compare.lighting.reflectance import Reflectance
from anomalib_pose.compare.maps import (
    gaussian_blur,
    squared_difference,
    tolerance_shifts,
    tolerant_distance,
    top_mean,
    upsample,
)
from anomalib_pose.compare.residual_statistics import ResidualStatistics

COLoR_SCALE, STRUCTURE_SCALE, REFLECTANCE_SCALE, FEATURE_SCALE = 0.03, 0.02, 0.05, 0.1
"""Spread of the residuals that stands until the calibration, about what good views show."""

_DARK = 0.05  # a larger offset of the reflectance than published: noise in the dark is not color


class CalibratedComparator(nn.Module):
    """Residuals of color, structure and features, forgiving to small shifts and measured against those of good views.

    The object's window is cut out and resized. In each layer (color in CIELAB, gradient of its lightness, stages of a
    network with features of unit length) query and reference have a distance; in color and gradient it is the smallest
    over shifts of up to ``tolerance`` pixels, the larger of both directions. Features are not shifted: they forgive
    what their cells cover, and shifting them too was measured to change nothing but the time. Calibrated on good views,
    a distance is expressed in spreads above the mean of its kind of place (distance to the outline, local
    contrast of the reference), so that layers can be added. The image score is the mean of the largest pixels, not one
    pixel.

    Without calibration fixed spreads stand in. Without a network only color and structure are compared.

    Args:
        backbone: timm name of the network; None or empty for none.
        layers: stages of the network that are compared.
        pretrained: take timm's weights if no file is given.
        weights_path: file with the network's weights; None or empty for none.
        pad_type: padding of the convolutions if not timm's default; see ``FeatureExtractor``.
        mean: image normalization of the network; None for its own.
        std: image normalization of the network; None for its own.
        crop_size: side in pixels that the object's window is resized to.
        margin: added to the window at each side, as a part of the object's longer side.
        tolerance: largest forgiven shift in pixels of the resized window; 0 for none.
        color_weight: weight of the color's residual.
        structure_weight: weight of the gradient's residual.
        layer_weights: weight of each of ``layers``; empty for half of the one before: fine stages see small defects.
        second_backbone: timm name of a second network, a transformer like DINOv2's for example, whose residuals are
            calibrated and added like those of the first; empty for none.
        second_layers: its stages or blocks; empty for those at half and at three quarters of its depth.
        second_weights_path: file with its weights; empty to let timm download them once.
        second_mix: its share of the features, in [0, 1], where there are two networks.
        reflectance_weight: weight of the residual of the reflectance, which is the same in all light.
        reflectance_weights_path: file of the published decomposition network; empty for the closed form.
        self_normalization: divide each layer by 1 + so many times its level, the squared mean of the square roots
            inside the object: other light, or a pose that is a little off, disturbs a layer everywhere, a defect, even
            a large one, in one place. 0 for none.
        feature_mix: share of the network in the sum, in [0, 1]; the rest is color, structure and reflectance.
        blur_sigma: standard deviation of the Gaussian that smooths the map, in pixels of the resized window.
        top_fraction: the score is the mean of so many pixels, as a fraction of the object's.
    """

    can_calibrate = True

    def __init__(
        self,
        backbone: str | None = None,
        layers: tuple[int, ...] = (0, 1, 2, 3),
        *,
        pretrained: bool = True,
        weights_path: str | None = None,
        pad_type: str = "",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        crop_size: int = 256,
        margin: float = 0.1,
        tolerance: float = 1.0,
        color_weight: float = 1.0,
        structure_weight: float = 1.0,
        layer_weights: tuple[float, ...] = (),
        second_backbone: str = "",
        second_layers: tuple[int, ...] = (),
        second_weights_path: str = "",
        second_mix: float = 0.5,
        reflectance_weight: float = 0.0,
        reflectance_weights_path: str = "",
        self_normalization: float = 1.0,
        feature_mix: float = 0.7,
        blur_sigma: float = 2.0,
        top_fraction: float = 0.001,
    ) -> None:
        super().__init__()
        self.extractor = (
            FeatureExtractor(
                backbone,
                layers,
                pretrained=pretrained,
                weights_path=weights_path,
                pad_type=pad_type,
                mean=mean,
                std=std,
            )
            if backbone
            else None
        )
        self.second = (
            FeatureExtractor(
                second_backbone, second_layers, pretrained=pretrained, weights_path=second_weights_path or None
            )
            if second_backbone
            else None
        )
        self.crop_size = crop_size
        self.margin = margin
        self.tolerance = tolerance
        self.blur_sigma = blur_sigma
        self.top_fraction = top_fraction
        self.self_normalization = self_normalization
        self.reflectance = Reflectance(reflectance_weights_path, _DARK) if reflectance_weight else None
        image_weights: tuple[float, ...] = (color_weight, structure_weight)
        scales: tuple[float, ...] = (COLoR_SCALE, STRUCTURE_SCALE)
        if reflectance_weight:
            image_weights, scales = (*image_weights, reflectance_weight), (*scales, REFLECTANCE_SCALE)
        if not 0 <= second_mix <= 1:
            msg = f"second_mix should be in [0, 1], got {second_mix}."
            raise ValueError(msg)
        both = bool(backbone and second_backbone)
        networks = ((self.extractor, 1 - second_mix, layer_weights), (self.second, second_mix, ()))
        experts = [
            (share if both else 1.0, given, len(network.layers))
            for network, share, given in networks
            if network is not None
        ]
        self.weights = layer_weights_of(image_weights, experts, feature_mix)
        scales += (FEATURE_SCALE,) * sum(stages for _, _, stages in experts)
        self.statistics = ResidualStatistics(len(scales), scales)
        self._check()

    def _check(self) -> None:
        if not 0 < self.top_fraction <= 1:
            msg = f"top_fraction should be in (0, 1], got {self.top_fraction}."
            raise ValueError(msg)
        if self.crop_size < 32:
            msg = f"crop_size should be 32 pixels or more, got {self.crop_size}."
            raise ValueError(msg)
        if min(self.tolerance, self.margin, self.blur_sigma, self.self_normalization) < 0:
            msg = (
                "tolerance, margin, blur_sigma and self_normalization should not be negative, "
                f"got {self.tolerance}, {self.margin}, {self.blur_sigma} and {self.self_normalization}."
            )
            raise ValueError(msg)

    def resized(self, size: int) -> "CalibratedComparator":
        """Return a copy for windows of another size, whose maps are smoothed as far on the object.

        Args:
            size: side of the windows in pixels.
        """
        resized = copy.deepcopy(self)
        resized.blur_sigma *= size / self.crop_size
        resized.crop_size = size
        return resized

    def _residuals(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        reflected: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b layers h w"]:
        """Tolerant distances of the windows, one map a layer."""
        size = (query.shape[-2], query.shape[-1])
        shifts = tolerance_shifts(self.tolerance)
        query_lab, reference_lab = lab(query), lab(reference)
        maps = [
            tolerant_distance(query_lab, reference_lab, shifts),
            tolerant_distance(gradient(query_lab), gradient(reference_lab), shifts),
        ]
        if self.reflectance is not None:
            theirs = self.reflectance(reference) if reflected is None else reflected
            maps.append(tolerant_distance(self.reflectance(query), theirs, shifts))
        for network in (self.extractor, self.second):
            if network is None:
                continue
            for ours, theirs in zip(network(query), network(reference), strict=True):
                squared = squared_difference(functional.normalize(ours), functional.normalize(theirs))
                maps.append(upsample(squared.sqrt(), size))
        return torch.stack(maps, 1)

    def _window(self, query: Tensor, reference: Tensor, alpha: Tensor) -> tuple[ObjectCrop, Tensor, Tensor, Tensor]:
        """The object's window, and query, reference and alpha in it."""
        crop = ObjectCrop.around(alpha, self.crop_size, self.margin)
        query, reference, window = crop.apply(query), crop.apply(reference), crop.apply(alpha[:, None])[:, 0]
        return crop, query, reference, window

    @torch.no_grad()
    def fit_calibration(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
        reflected: Float[Tensor, "n 3 h w"] | None = None,
    ) -> None:
        """Learn mean and spread of the residuals of good views.

        Args:
            queries: good views that the scene was not fitted to, RGB in [0, 1].
            references: their renderings, RGB in [0, 1].
            alphas: opacity of the object in the renderings, in [0, 1].
            reflected: what the renderings reflect; None to take it from them.

        Raises:
            ValueError: if there is no view.
        """
        if len(queries):
            crop, queries, references, alphas = self._window(queries, references, alphas)
            reflected = None if reflected is None else crop.apply(reflected)
        self.fit_windows(queries, references, alphas, reflected)

    @torch.no_grad()
    def fit_windows(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
        reflected: Float[Tensor, "n 3 h w"] | None = None,
    ) -> None:
        """``fit_calibration`` on images that are windows of the object already."""
        if not len(queries):
            msg = "fit_calibration expects at least one good view, found none; leave it out to use fixed spreads."
            raise ValueError(msg)
        residuals = [
            self._residuals(queries[one], references[one], None if reflected is None else reflected[one])[0]
            for one in torch.arange(len(queries)).split(1)
        ]
        self.statistics.fit(residuals, list(contrast(references)), list(alphas))

    @torch.no_grad()
    def forward(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        alpha: Float[Tensor, "b h w"],
        reflected: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b h w"]:
        """Anomaly map, in spreads of good views; 0 outside of the object's window.

        Args:
            query: photographs, RGB in [0, 1].
            reference: their defect-free renderings, RGB in [0, 1].
            alpha: opacity of the object in the reference, in [0, 1]; where it is empty the whole image is compared.
            reflected: what the references reflect; None to take it from them.
        """
        crop, query, reference, window = self._window(query, reference, alpha)
        reflected = None if reflected is None else crop.apply(reflected)
        return crop.restore(self.compare_windows(query, reference, window, reflected))

    def compare_windows(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        alpha: Float[Tensor, "b h w"],
        reflected: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b h w"]:
        """``forward`` on images that are windows of the object already; holds no branch that depends on the data."""
        deviations = self.statistics(self._residuals(query, reference, reflected), contrast(reference), alpha)
        if self.self_normalization:
            inside = (alpha > 0.5).to(deviations)[:, None]
            root = (deviations.sqrt() * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
            deviations = deviations / (1 + self.self_normalization * root.square())[:, :, None, None]
        total = (deviations * deviations.new_tensor(self.weights)[:, None, None]).sum(1)
        return gaussian_blur(total * shown(query, reference, alpha), self.blur_sigma)

    def score(self, anomaly_map: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """Mean of the largest ``top_fraction`` of pixels.

        Args:
            anomaly_map: maps of ``forward``.
            alpha: opacity of the object in the reference, in [0, 1].
        """
        return top_mean(anomaly_map, alpha, self.top_fraction)
