# SPDX-License-Identifier: Apache-2.0
"""Published comparisons of OmniposeAD, SplatPose and SplatPose+, and of PIAD."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.compare.features import NetworkSettings
from anomalib_pose.compare.lighting.reflectance import Reflectance
from anomalib_pose.compare.maps import gaussian_blur_mirrored, squared_difference, upsample

PAPER_NETWORK = NetworkSettings("tf_efficientnet_b4.aa_in1k")
"""Network of the papers, EfficientNet-B4."""


def paper_map(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    query_features: list[Tensor],
    reference_features: list[Tensor],
    *,
    rgb_term: bool = True,
    blur_sigma: float = 4.0,
) -> Float[Tensor, "b h w"]:
    """Sum the squared differences of images and features over channels and layers, then blur the sum.

    Args:
        query: queries, normalized for the network.
        reference: references, normalized for the network.
        query_features: feature maps (B, C, h, w) of the queries, one for each layer.
        reference_features: feature maps of the references.
        rgb_term: add the difference of the images.
        blur_sigma: standard deviation of the Gaussian in pixels.
    """
    size = (query.shape[-2], query.shape[-1])
    total = squared_difference(query, reference) if rgb_term else torch.zeros_like(query[:, 0])
    for query_layer, reference_layer in zip(query_features, reference_features, strict=True):
        total = total + upsample(squared_difference(query_layer, reference_layer), size)
    return gaussian_blur_mirrored(total, blur_sigma)


class PaperComparator(nn.Module):
    """Sums squared feature differences without weights, as in PAD (NeurIPS 2023) and SplatPose (CVPR-W 2024).

    The score is the maximum of the map. Neither the object's mask nor a calibration is used.

    Args:
        network: network whose features are compared.
        image_size: length of the shorter side that images are resized to, 224 in the papers; 0 keeps their size. The
            map is resized back, which lowers its maximum a little. Give images of this size to reproduce published
            scores.
        rgb_term: add the difference of the normalized images, as in the papers.
        blur_sigma: standard deviation of the Gaussian in pixels of the resized image.
    """

    can_calibrate = False
    reflectance: Reflectance | None

    def __init__(
        self,
        network: NetworkSettings = PAPER_NETWORK,
        *,
        image_size: int = 224,
        rgb_term: bool = True,
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.reflectance = None
        self.extractor = network.build()
        self.image_size = image_size
        self.rgb_term = rgb_term
        self.blur_sigma = blur_sigma

    def resized(self, size: int) -> "PaperComparator":
        """Return a copy: images of any size are resized to ``image_size``.

        Args:
            size: not used.
        """
        del size
        return copy.deepcopy(self)

    def _resize(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if not self.image_size or min(height, width) == self.image_size:
            return image
        scale = self.image_size / min(height, width)
        size = (round(height * scale), round(width * scale))
        return functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)

    def _map(self, query: Tensor, reference: Tensor, reference_reflectance: Tensor | None) -> Tensor:
        """Compute anomaly maps of resized images."""
        del reference_reflectance
        return paper_map(
            self.extractor.normalize(query),
            self.extractor.normalize(reference),
            self.extractor(query),
            self.extractor(reference),
            rgb_term=self.rgb_term,
            blur_sigma=self.blur_sigma,
        )

    @torch.no_grad()
    def forward(
        self,
        query: Float[Tensor, "b 3 h w"],
        reference: Float[Tensor, "b 3 h w"],
        alpha: Float[Tensor, "b h w"],  # noqa: ARG002
        reference_reflectance: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b h w"]:
        """Compute anomaly maps.

        Args:
            query: queries, RGB in [0, 1].
            reference: references of the queries, RGB in [0, 1].
            alpha: not used.
            reference_reflectance: rendered reflectance of the references, for comparators that compare it; None to
                compute it from the references.
        """
        size = (query.shape[-2], query.shape[-1])
        if reference_reflectance is not None:
            reference_reflectance = self._resize(reference_reflectance)
        anomaly_map = self._map(self._resize(query), self._resize(reference), reference_reflectance)
        return anomaly_map if anomaly_map.shape[-2:] == size else upsample(anomaly_map, size)

    def compare_windows(
        self, query: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], alpha: Float[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w"]:
        """Compute anomaly maps of windows like those of whole images; the papers have no windows."""
        anomaly_map: Tensor = self(query, reference, alpha)
        return anomaly_map

    def score(
        self,
        anomaly_map: Float[Tensor, "b h w"],
        alpha: Float[Tensor, "b h w"],  # noqa: ARG002
    ) -> Float[Tensor, " b"]:
        """Return the maximum of each map.

        Args:
            anomaly_map: maps of ``forward``.
            alpha: not used.
        """
        return anomaly_map.flatten(1).amax(1)

    def fit_calibration(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
        reference_reflectances: Float[Tensor, "n 3 h w"] | None = None,
    ) -> None:
        """Do nothing: the papers do not calibrate.

        Args:
            queries: not used.
            references: not used.
            alphas: not used.
            reference_reflectances: not used.
        """

    def fit_windows(
        self,
        queries: Float[Tensor, "n 3 h w"],
        references: Float[Tensor, "n 3 h w"],
        alphas: Float[Tensor, "n h w"],
    ) -> None:
        """Do nothing; see ``fit_calibration``."""


class ProductComparator(PaperComparator):
    """Multiplies the feature differences of images and of their reflectances (PIAD, CVPR 2025).

    ``S = sum_l up(D_l(I) D_l(R))``, blurred; the score is the maximum. The product misses a defect that differs only
    in the image or only in the reflectance, such as a gray defect on a gray surface.

    Args:
        network: see ``PaperComparator``.
        reflectance_weights_path: file of the published decomposition network; empty for the closed form.
        image_size: length of the shorter side that images are resized to, 400 in the paper; see ``PaperComparator``.
        blur_sigma: see ``PaperComparator``.
    """

    reflectance: Reflectance

    def __init__(
        self,
        network: NetworkSettings = PAPER_NETWORK,
        *,
        reflectance_weights_path: str = "",
        image_size: int = 400,
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__(network, image_size=image_size, rgb_term=False, blur_sigma=blur_sigma)
        self.reflectance = Reflectance(reflectance_weights_path)

    def _map(self, query: Tensor, reference: Tensor, reference_reflectance: Tensor | None) -> Tensor:
        size = (query.shape[-2], query.shape[-1])
        if reference_reflectance is None:
            reference_reflectance = self.reflectance(reference)
        image_pairs = zip(self.extractor(query), self.extractor(reference), strict=True)
        reflectance_features = self.extractor(self.reflectance(query)), self.extractor(reference_reflectance)
        total = torch.zeros_like(query[:, 0])
        for image_pair, reflectance_pair in zip(image_pairs, zip(*reflectance_features, strict=True), strict=True):
            product = squared_difference(*image_pair) * squared_difference(*reflectance_pair)
            total = total + upsample(product, size)
        return gaussian_blur_mirrored(total, self.blur_sigma)
