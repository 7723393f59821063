# SPDX-License-Identifier: Apache-2.0
"""The comparison that OmniposeAD, SplatPose and SplatPose+ publish."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.compare.lighting.reflectance import Reflectance
from anomalib_pose.compare.maps import gaussian_blur, squared_difference, upsample


def paper_map(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    query_features: list[Tensor],
    reference_features: list[Tensor],
    *,
    rgb_term: bool = True,
    blur_sigma: float = 4.0,
) -> Float[Tensor, "b h w"]:
    """Squared differences of normalized images and of features, summed over channels and layers, then blurred.

    Args:
        query: photographs as the network gets them.
        reference: renderings as the network gets them.
        query_features: feature maps (B, C, h, w) of the photographs.
        reference_features: feature maps of the renderings.
        rgb_term: add the difference of the images.
        blur_sigma: standard deviation of the Gaussian in pixels.
    """
    size = (query.shape[-2], query.shape[-1])
    total = squared_difference(query, reference) if rgb_term else torch.zeros_like(query[:, 0])
    for ours, theirs in zip(query_features, reference_features, strict=True):
        total = total + upsample(squared_difference(ours, theirs), size)
    return gaussian_blur(total, blur_sigma)


class PaperComparator(nn.Module):
    """Unweighted squared feature differences, scored by their maximum (PAD, NeurIPS 2023; SplatPose, CVPR-W 2024).

    Neither the object's mask nor a calibration is used.

    Args:
        backbone: timm name of the network.
        layers: stages of the network that are compared.
        pretrained: take timm's weights if no file is given.
        weights_path: file with the network's weights; None or empty for none.
        pad_type: padding of the convolutions if not timm's default; see ``FeatureExtractor``.
        mean: image normalization; None for the network's own.
        std: image normalization; None for the network's own.
        image_size: length of the shorter side that images are resized to, 224 in the papers; 0 to keep their size. The
            map is resized back, which lowers its maximum a little: for the papers' scores give images of this size.
        rgb_term: add the difference of the normalized images, as the papers do.
        blur_sigma: standard deviation of the Gaussian in pixels of the resized image.
    """

    can_calibrate = False

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b4.aa_in1k",
        layers: tuple[int, ...] = (0, 1, 2, 3),
        *,
        pretrained: bool = True,
        weights_path: str | None = None,
        pad_type: str = "",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        image_size: int = 224,
        rgb_term: bool = True,
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__()
        self.reflectance: Reflectance | None = None
        self.extractor = FeatureExtractor(
            backbone,
            layers,
            pretrained=pretrained,
            weights_path=weights_path,
            pad_type=pad_type,
            mean=mean,
            std=std,
        )
        self.image_size = image_size
        self.rgb_term = rgb_term
        self.blur_sigma = blur_sigma

    def resized(self, size: int) -> "PaperComparator":
        """Return a copy: these comparators resize their input and have no window.

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

    def _map(self, query: Tensor, reference: Tensor, reflected: Tensor | None) -> Tensor:
        del reflected
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
        """Anomaly map.

        Args:
            query: photographs, RGB in [0, 1].
            reference: their defect-free renderings, RGB in [0, 1].
            alpha: not used.
            reference_reflectance: rendered reflectance of the references, for comparators that compare it.
        """
        size = (query.shape[-2], query.shape[-1])
        query, reference = self._resize(query), self._resize(reference)
        if reference_reflectance is not None:
            reference_reflectance = self._resize(reference_reflectance)
        found = self._map(query, reference, reference_reflectance)
        return found if found.shape[-2:] == size else upsample(found, size)

    def compare_windows(
        self, query: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"], alpha: Float[Tensor, "b h w"]
    ) -> Float[Tensor, "b h w"]:
        """The same as ``forward``: the papers know no window."""
        found: Tensor = self(query, reference, alpha)
        return found

    def score(
        self,
        anomaly_map: Float[Tensor, "b h w"],
        alpha: Float[Tensor, "b h w"],  # noqa: ARG002
    ) -> Float[Tensor, " b"]:
        """Maximum of the map.

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
    """Product of the feature differences of images and of their reflectances (PIAD, CVPR 2025).

    ``S = sum_l up(D_l(I) D_l(R))``, blurred, scored by its maximum. What differs in one domain alone, such as a gray
    defect on gray, is not seen.

    Args:
        reflectance_weights_path: file of the published decomposition network; empty for the closed form.
        image_size: length of the shorter side that images are resized to, 400 in the paper.
        options: of ``PaperComparator``.
    """

    def __init__(self, *, reflectance_weights_path: str = "", image_size: int = 400, **options: Any) -> None:
        super().__init__(image_size=image_size, rgb_term=False, **options)
        self.reflectance: Reflectance = Reflectance(reflectance_weights_path)

    def _map(self, query: Tensor, reference: Tensor, reflected: Tensor | None) -> Tensor:
        size = (query.shape[-2], query.shape[-1])
        images = self.extractor(query), self.extractor(reference)
        theirs_reflected = self.reflectance(reference) if reflected is None else reflected
        reflectances = self.extractor(self.reflectance(query)), self.extractor(theirs_reflected)
        total = torch.zeros_like(query[:, 0])
        for ours, theirs, our_color, their_color in zip(*images, *reflectances, strict=True):
            product = squared_difference(ours, theirs) * squared_difference(our_color, their_color)
            total = total + upsample(product, size)
        return gaussian_blur(total, self.blur_sigma)
