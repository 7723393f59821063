# SPDX-License-Identifier: Apache-2.0
"""What the residuals of good views look like, depending on where they are."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.compare.maps import largest_around

SILHOUETTE_STEPS = (-6, 0, 2, 4, 8)
"""Distances to the silhouette in pixels, negative outside, at which one kind of place ends and the next begins."""
PRIOR_PIXELS = 400.0
"""So many pixels of the layer's average are added to each kind of place: rare places borrow from it."""
FLOOR = 0.2
"""Smallest spread of a kind of place, as a part of the layer's: flat background has none of its own."""

_SOFTNESS = 0.2  # width of the passage from one class of contrast to the next, as a part of the contrast
_NO_CONTRAST = 1e-6


def silhouette_zone(alpha: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Zones of distance (largest of both axes) to the object's outline: 0 far outside, rising inwards.

    Between two zones lie fractions where the opacity itself is neither that of the object nor that of the background.

    Args:
        alpha: opacity of the object.
    """
    inside = (2 * alpha - 0.5).clamp(0, 1)
    zone = torch.zeros_like(inside)
    for step in SILHOUETTE_STEPS:
        if step > 0:
            zone += 1 - largest_around(1 - inside, 2 * step + 1)
        else:
            zone += largest_around(inside, 1 - 2 * step)
    return zone


class ResidualStatistics(nn.Module):
    """Mean and spread of residuals in each layer and kind of place, from good views.

    A kind of place is a zone of distance to the silhouette together with a class of the reference's local contrast:
    edges and outlines differ in good views too. Between two kinds mean and spread are interpolated, so that the last
    digit of a rendering, which differs from one runtime to the next, decides nothing.

    Args:
        layers: number of residual maps an image.
        scales: spread of each layer that stands until ``fit``.
        contrast_classes: number of classes of local contrast.
    """

    edges: Tensor
    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, layers: int, scales: tuple[float, ...], contrast_classes: int = 5) -> None:
        super().__init__()
        self.zones = len(SILHOUETTE_STEPS) + 1
        self.classes = contrast_classes
        bins = self.zones * contrast_classes
        self.register_buffer("edges", torch.full((contrast_classes - 1,), torch.inf))
        self.register_buffer("mean", torch.zeros(layers, bins))
        self.register_buffer("std", torch.tensor(scales)[:, None].expand(layers, bins).clone())
        self.register_buffer("fitted", torch.tensor(data=False))

    def places(
        self, contrast: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"]
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b h w"]]:
        """Zone and class of contrast of each pixel; fractions lie between two of them."""
        steps = (contrast[..., None] / self.edges.clamp(min=_NO_CONTRAST) - 1) / _SOFTNESS + 0.5
        return silhouette_zone(alpha), steps.clamp(0, 1).sum(-1)

    @torch.no_grad()
    def fit(
        self,
        residuals: list[Float[Tensor, "layers h w"]],
        contrasts: list[Float[Tensor, "h w"]],
        alphas: list[Float[Tensor, "h w"]],
    ) -> None:
        """Learn the statistics.

        Args:
            residuals: of each good view, one map a layer.
            contrasts: local contrast of each reference.
            alphas: opacity of the object in each.
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
            zone, level = ((part - 0.5).ceil().long() for part in self.places(contrast[None], alpha[None]))
            place = (zone * self.classes + level).flatten()
            values = residual.flatten(1).double()
            for order in range(3):
                sums[order] += torch.stack([torch.bincount(place, value**order, bins) for value in values])
        self._from_sums(sums)

    def _from_sums(self, sums: Tensor) -> None:
        """Means and spreads from numbers, sums and sums of squares (3, layers, bins)."""
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
        """Residuals in spreads above the mean of their kind of place; 0 where they are below.

        A match that is better than usual in one layer says nothing against a defect in another.
        """
        zone, level = self.places(contrast, alpha)
        near = _hats(zone, self.zones)[:, :, None] * _hats(level, self.classes)[:, None]
        mean, std = (table @ near.flatten(1, 2).flatten(2) for table in (self.mean, self.std))
        return ((residuals - mean.view_as(residuals)) / std.view_as(residuals)).clamp(min=0)


def _hats(place: Float[Tensor, "b h w"], count: int) -> Float[Tensor, "b count h w"]:
    """Weights of the whole numbers below ``count`` in linear interpolation."""
    centers = torch.arange(count, dtype=place.dtype, device=place.device)[:, None, None]
    return torch.relu(1 - (place[:, None] - centers).abs())
