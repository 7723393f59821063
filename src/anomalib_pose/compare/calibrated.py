# SPDX-License-Identifier: Apache-2.0
"""Comparison relative to the residuals of normal views."""

import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.compare.crop import ObjectCrop
from anomalib_pose.compare.features import NetworkSettings
from anomalib_pose.compare.image_layers import contrast, foreground_of_either, gradient, lab
from anomalib_pose.compare.lighting.reflectance import Reflectance
from anomalib_pose.compare.maps import (
    gaussian_blur_mirrored,
    squared_difference,
    tolerance_shifts,
    tolerant_distance,
    top_mean,
    upsample,
)
from anomalib_pose.compare.residual_statistics import ResidualStatistics
from anomalib_pose.compare.settings import LayerWeights, ScoringSettings, WindowSettings
from anomalib_pose.progress import track

IMAGE_SCALES = (0.03, 0.02, 0.05)
"""Typical standard deviations of the color, structure and reflectance residuals of normal views, before calibration."""
FEATURE_SCALE = 0.1
"""Typical standard deviation of the feature residuals of normal views, before calibration."""

_REFLECTANCE_OFFSET = 0.05  # above the published 0.007: image noise in dark regions is not color


class CalibratedComparator(nn.Module):
    """Compares color, structure and features with a tolerance to shifts, relative to the residuals of normal views.

    Query and reference are cropped to a window around the object and resized. Each layer gives one residual map:

    - color in CIELAB, the gradient of its lightness (structure), and the reflectance if its weight is above 0. Their
      residual is the smallest distance over shifts of up to ``tolerance`` pixels, the larger of the two directions;
    - the layers of the network, with features of unit length. Their residual is the distance without shifts: a feature
      cell tolerates shifts inside it. In measurements, shifting features too changed only the run time.

    ``fit_calibration`` learns the mean and the standard deviation of the residuals of normal views. Both depend on the
    distance of a pixel to the outline and on the local contrast of the reference. Each residual is then expressed in
    standard deviations above the mean, so that layers can be added. Without calibration, fixed standard deviations are
    used. Without a network, only the image layers are compared.

    The score of an image is the mean of its largest pixels, not of a single pixel.

    Args:
        network: network whose features are compared; None to compare the image layers only.
        second_network: second network, for example EfficientNet-lite0 or a transformer such as DINOv2. Its residuals
            are calibrated and added like those of the first network; None for none.
        window: window around the object; None for the defaults.
        weights: weights of the layers; None for the defaults.
        scoring: tolerance, normalization, smoothing and score; None for the defaults.
        reflectance_weights_path: file of the published decomposition network; empty for the closed form.

    Raises:
        ValueError: if the weights do not suit the layers of the network.
    """

    can_calibrate = True

    def __init__(
        self,
        network: NetworkSettings | None = None,
        *,
        second_network: NetworkSettings | None = None,
        window: WindowSettings | None = None,
        weights: LayerWeights | None = None,
        scoring: ScoringSettings | None = None,
        reflectance_weights_path: str = "",
    ) -> None:
        super().__init__()
        self.extractor = None if network is None else network.build()
        self.second = None if second_network is None else second_network.build()
        weights = weights or LayerWeights()
        self.window = window or WindowSettings()
        self.scoring = scoring or ScoringSettings()
        self.reflectance = Reflectance(reflectance_weights_path, _REFLECTANCE_OFFSET) if weights.reflectance else None
        extractors = [extractor for extractor in (self.extractor, self.second) if extractor is not None]
        layer_counts = tuple(len(extractor.layers) for extractor in extractors)
        self.weights = weights.normalized(layer_counts)
        scales = IMAGE_SCALES[: len(weights.image_weights)] + (FEATURE_SCALE,) * sum(layer_counts)
        self.statistics = ResidualStatistics(len(scales), scales)

    def resized(self, size: int) -> "CalibratedComparator":
        """Return a copy for windows of another size; its smoothing covers the same part of the object.

        Args:
            size: side of the windows in pixels.
        """
        resized = copy.deepcopy(self)
        resized.scoring = replace(self.scoring, blur_sigma=self.scoring.blur_sigma * (size / self.window.size))
        resized.window = replace(self.window, size=size)
        return resized

    def _residuals(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        reference_reflectance: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b layers h w"]:
        """Compute the residual maps of windows, one for each layer."""
        size = (query.shape[-2], query.shape[-1])
        shifts = tolerance_shifts(self.scoring.tolerance)
        query_lab, reference_lab = lab(query), lab(reference)
        residuals = [
            tolerant_distance(query_lab, reference_lab, shifts),
            tolerant_distance(gradient(query_lab), gradient(reference_lab), shifts),
        ]
        if self.reflectance is not None:
            if reference_reflectance is None:
                reference_reflectance = self.reflectance(reference)
            residuals.append(tolerant_distance(self.reflectance(query), reference_reflectance, shifts))
        for extractor in (self.extractor, self.second):
            if extractor is None:
                continue
            for query_features, reference_features in zip(extractor(query), extractor(reference), strict=True):
                unit_features = functional.normalize(query_features), functional.normalize(reference_features)
                residuals.append(upsample(squared_difference(*unit_features).sqrt(), size))
        return torch.stack(residuals, 1)

    @torch.no_grad()
    def fit_calibration(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
        reference_reflectances: Float[Tensor, "n 3 h w"] | None = None,
    ) -> None:
        """Learn mean and standard deviation of the residuals of normal views.

        Args:
            queries: normal views that the scene was not fitted to, RGB in [0, 1].
            references: references of the views, RGB in [0, 1].
            alphas: opacity of the object in the references, in [0, 1].
            reference_reflectances: rendered reflectance of the references; None to compute it from the references.

        Raises:
            ValueError: if there is no view.
        """
        if len(queries):
            crop = ObjectCrop.around(alphas, self.window.size, self.window.margin)
            queries, references, alphas = crop.apply(queries), crop.apply(references), crop.apply(alphas[:, None])[:, 0]
            reference_reflectances = None if reference_reflectances is None else crop.apply(reference_reflectances)
        self.fit_windows(queries, references, alphas, reference_reflectances)

    @torch.no_grad()
    def fit_windows(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
        reference_reflectances: Float[Tensor, "n 3 h w"] | None = None,
    ) -> None:
        """Learn from images that are already windows around the object; see ``fit_calibration``."""
        if not len(queries):
            msg = "fit_calibration needs at least one normal view, got none. Without it, fixed scales are used."
            raise ValueError(msg)
        reflectances = None if reference_reflectances is None else reference_reflectances.split(1)
        residuals = [
            self._residuals(query, reference, None if reflectances is None else reflectances[index])[0]
            for index, (query, reference) in enumerate(
                track(zip(queries.split(1), references.split(1), strict=True), "Compare views", len(queries))
            )
        ]
        self.statistics.fit(residuals, list(contrast(references)), list(alphas))

    @torch.no_grad()
    def forward(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        alpha: Float[Tensor, "b h w"],
        reference_reflectance: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b h w"]:
        """Compute anomaly maps in standard deviations of normal views; 0 outside the windows.

        Args:
            query: queries, RGB in [0, 1].
            reference: references of the queries, RGB in [0, 1].
            alpha: opacity of the object in the references, in [0, 1]; where it is empty the whole image is compared.
            reference_reflectance: rendered reflectance of the references; None to compute it from the references.
        """
        crop = ObjectCrop.around(alpha, self.window.size, self.window.margin)
        windows = crop.apply(query), crop.apply(reference), crop.apply(alpha[:, None])[:, 0]
        reference_reflectance = None if reference_reflectance is None else crop.apply(reference_reflectance)
        return crop.restore(self.compare_windows(*windows, reference_reflectance))

    def compare_windows(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        alpha: Float[Tensor, "b h w"],
        reference_reflectance: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b h w"]:
        """Compute the maps of images that are already windows; see ``forward``. No branch depends on pixel values."""
        residuals = self._residuals(query, reference, reference_reflectance)
        deviations = self.statistics(residuals, contrast(reference), alpha)
        if self.scoring.self_normalization:
            inside = (alpha > 0.5).to(deviations)[:, None]
            root = (deviations.sqrt() * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
            deviations = deviations / (1 + self.scoring.self_normalization * root.square())[:, :, None, None]
        total = (deviations * deviations.new_tensor(self.weights)[:, None, None]).sum(1)
        return gaussian_blur_mirrored(total * foreground_of_either(query, reference, alpha), self.scoring.blur_sigma)

    def score(self, anomaly_map: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """Compute the mean of the largest pixels of each map; see ``ScoringSettings.top_fraction``.

        Args:
            anomaly_map: maps of ``forward``.
            alpha: opacity of the object in the references, in [0, 1].
        """
        return top_mean(anomaly_map, alpha, self.scoring.top_fraction)
