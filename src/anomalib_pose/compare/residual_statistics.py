# SPDX-License-Identifier: Apache-2.0
"""Statistics of the residuals of normal views, by distance to the outline and by local contrast."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.compare.maps import largest_around

OUTLINE_DISTANCES = (-6, 0, 2, 4, 8)
"""Distances to the outline in pixels, negative outside, that separate the zones."""
PRIOR_PIXELS = 400.0
"""Number of pixels with the layer's average that are added to each bin, so that bins with few pixels stay stable."""
FLOOR = 0.2
"""Smallest standard deviation of a bin, as a fraction of the layer's: flat background alone would have 0."""

_SOFTNESS = 0.2  # width of the transition between two contrast classes, as a fraction of the contrast
_NO_CONTRAST = 1e-6


def outline_zone(alpha: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Compute the zone of each pixel by its distance (maximum over both axes) to the object's outline.

    Zone 0 is far outside; zones rise inwards. The zone is fractional where the opacity is neither that of the object
    nor that of the background.

    Args:
        alpha: opacity of the object.
    """
    inside = (2 * alpha - 0.5).clamp(0, 1)
    zone = torch.zeros_like(inside)
    for distance in OUTLINE_DISTANCES:
        if distance > 0:
            zone += 1 - largest_around(1 - inside, 2 * distance + 1)
        else:
            zone += largest_around(inside, 1 - 2 * distance)
    return zone


class ResidualStatistics(nn.Module):
    """Mean and standard deviation of the residuals of normal views, for each layer and bin.

    A bin combines a zone of distance to the outline with a class of the reference's local contrast: normal views too
    have residuals at edges and outlines. Mean and standard deviation are interpolated between bins. So the last digit
    of a rendering, which differs between runtimes, does not decide on a bin.

    Args:
        layers: number of residual maps for each image.
        scales: standard deviation of each layer before ``fit``.
        contrast_classes: number of classes of local contrast.
    """

    edges: Tensor
    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, layers: int, scales: tuple[float, ...], contrast_classes: int = 5) -> None:
        super().__init__()
        self.zones = len(OUTLINE_DISTANCES) + 1
        self.classes = contrast_classes
        bins = self.zones * contrast_classes
        self.register_buffer("edges", torch.full((contrast_classes - 1,), torch.inf))
        self.register_buffer("mean", torch.zeros(layers, bins))
        self.register_buffer("std", torch.tensor(scales)[:, None].expand(layers, bins).clone())
        self.register_buffer("fitted", torch.tensor(data=False))

    def zone_and_class(
        self, contrast: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
        """Compute the zone and the contrast class of each pixel; a fraction lies between two zones or classes.

        Args:
            contrast: local contrast of the references.
            alpha: opacity of the object in the references.
        """
        steps = (contrast[..., None] / self.edges.clamp(min=_NO_CONTRAST) - 1) / _SOFTNESS + 0.5
        return outline_zone(alpha), steps.clamp(0, 1).sum(-1)

    @torch.no_grad()
    def fit(
        self,
        residuals: list[Float[Tensor, "layers h w"]],
        contrasts: list[Float[Tensor, "h w"]],
        alphas: list[Float[Tensor, "h w"]],
    ) -> None:
        """Learn the statistics.

        Args:
            residuals: residual maps of each normal view, one map for each layer.
            contrasts: local contrast of each reference.
            alphas: opacity of the object in each reference.
        """
        inside = torch.cat([contrast[alpha > 0.5] for contrast, alpha in zip(contrasts, alphas, strict=True)])
        inside = inside if len(inside) else torch.cat([contrast.flatten() for contrast in contrasts])
        # torch.quantile refuses more than 2^24 values
        sample = inside[:: max(1, len(inside) // 1_000_000)]
        levels = torch.arange(1, self.classes, device=sample.device) / self.classes
        self.edges.copy_(torch.quantile(sample, levels.to(sample)))
        layers, bins = self.mean.shape
        sums = self.mean.new_zeros(3, layers, bins, dtype=torch.float64)
        for residual, contrast, alpha in zip(residuals, contrasts, alphas, strict=True):
            coordinates = self.zone_and_class(contrast[None], alpha[None])
            zone, contrast_class = ((coordinate - 0.5).ceil().long() for coordinate in coordinates)
            index = (zone * self.classes + contrast_class).flatten()
            values = residual.flatten(1).double()
            for order in range(3):
                sums[order] += torch.stack([torch.bincount(index, value**order, bins) for value in values])
        self._from_sums(sums)

    def _from_sums(self, sums: Tensor) -> None:
        """Compute the statistics from the counts, sums and sums of squares (3, layers, bins) of the residuals."""
        on_object = sums[:, :, self.classes * 2 :].sum(2, keepdim=True)
        if not bool(on_object[0].all()):
            on_object = sums.sum(2, keepdim=True)
        overall = on_object / on_object[0]
        overall_std = (overall[2] - overall[1].square()).clamp(min=0).sqrt()
        moments = (sums + PRIOR_PIXELS * overall) / (sums[0] + PRIOR_PIXELS)
        std = (moments[2] - moments[1].square()).clamp(min=0).sqrt()
        self.mean.copy_(moments[1])
        self.std.copy_(torch.maximum(std, FLOOR * overall_std).clamp(min=1e-6))
        self.fitted.fill_(value=True)

    def forward(
        self,
        residuals: Float[Tensor, "b layers h w"],
        contrast: Float[Tensor, "b h w"],
        alpha: Float[Tensor, "b h w"],
    ) -> Float[Tensor, "b layers h w"]:
        """Express residuals in standard deviations above the mean of their bin; 0 where they are below the mean.

        Residuals below the mean are 0, because a small residual in one layer is no evidence against a defect in
        another.

        Args:
            residuals: residual maps of queries.
            contrast: local contrast of the queries' references.
            alpha: opacity of the object in the references.
        """
        zone, contrast_class = self.zone_and_class(contrast, alpha)
        zone_weights = _interpolation_weights(zone, self.zones)[:, :, None]
        bin_weights = zone_weights * _interpolation_weights(contrast_class, self.classes)[:, None]
        mean, std = (table @ bin_weights.flatten(1, 2).flatten(2) for table in (self.mean, self.std))
        return ((residuals - mean.view_as(residuals)) / std.view_as(residuals)).clamp(min=0)


def _interpolation_weights(position: Float[Tensor, "b h w"], count: int) -> Float[Tensor, "b count h w"]:
    """Compute the linear interpolation weights of the positions 0, 1, ..., ``count`` - 1."""
    centers = torch.arange(count, dtype=position.dtype, device=position.device)[:, None, None]
    return torch.relu(1 - (position[:, None] - centers).abs())
