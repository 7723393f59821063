# SPDX-License-Identifier: Apache-2.0
"""Thresholds and normalisation of one way of scoring, for another one."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

_PIXEL_LEVELS = 400
_RAREST = 1e-6


class ScoreMap:
    """Monotone map between two kinds of scores of the same things: equal ranks go together.

    Beyond the scores it was learned from it goes on with the slope between median and largest.

    Args:
        theirs: scores whose scale is known.
        ours: scores of the same images or pixels, in any order.
    """

    def __init__(self, theirs: Float[Tensor, "n"], ours: Float[Tensor, "m"]) -> None:
        if not len(theirs) or not len(ours):
            msg = f"A map of scores needs scores of both kinds, got {len(theirs)} and {len(ours)}."
            raise ValueError(msg)
        rare = 1 - torch.logspace(0, torch.tensor(_RAREST).log10().item(), _PIXEL_LEVELS, dtype=torch.float64)
        self.theirs, self.ours = _quantiles(theirs, rare), _quantiles(ours, rare)

    def __call__(self, score: float) -> float:
        """The score of our kind that ranks where ``score`` ranks among theirs."""
        theirs, ours = self.theirs, self.ours
        middle = len(theirs) // 2
        slope = float((ours[-1] - ours[middle]) / (theirs[-1] - theirs[middle]).clamp(min=1e-9))
        if score >= float(theirs[-1]):
            return float(ours[-1]) + slope * (score - float(theirs[-1]))
        if score <= float(theirs[0]):
            return float(ours[0]) + slope * (score - float(theirs[0]))
        upper = int(torch.searchsorted(theirs, torch.tensor(score, dtype=theirs.dtype), right=True))
        low, high = float(theirs[upper - 1]), float(theirs[upper])
        share = (score - low) / max(high - low, 1e-12)
        return float(ours[upper - 1]) + share * float(ours[upper] - ours[upper - 1])


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    ordered = values.flatten().double().cpu().sort().values
    place = levels * (len(ordered) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)


def carry_over(post_processor: nn.Module, images: ScoreMap, pixels: ScoreMap) -> nn.Module:
    """A copy of anomalib's post-processor whose thresholds and limits are on our scale.

    Args:
        post_processor: calibrated on their scores; numbers it has not learned (NaN) stay so.
        images: map of the image scores.
        pixels: map of the pixel scores.
    """
    mine = copy.deepcopy(post_processor)
    buffers = dict(mine.named_buffers())
    for names, mapping in (
        (("_image_threshold", "image_min", "image_max"), images),
        (("_pixel_threshold", "pixel_min", "pixel_max"), pixels),
    ):
        for name in names:
            buffer = buffers.get(name)
            if buffer is not None and bool(buffer.isfinite().all()):
                buffer.fill_(mapping(float(buffer)))
    return mine
