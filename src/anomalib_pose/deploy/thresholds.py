# SPDX-License-Identifier: Apache-2.0
"""Thresholds and normalization of one way of scoring, for another one."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from anomalib.data import Batch
from jaxtyping import Float
from scipy.stats import theilslopes
from torch import Tensor, nn

_PIXEL_LEVELS = 400
_RAREST = 1e-6
_FAR = 6.0  # median residuals: four standard deviations


class ScoreMap:
    """Monotone map between two kinds of scores of the same things: equal ranks go together.

    Beyond the scores it was learned from it goes on with the slope between median and largest.

    Args:
        theirs: scores whose scale is known.
        ours: scores of the same images or pixels, in any order.
    """

    def __init__(self, theirs: Float[Tensor, " n"], ours: Float[Tensor, " m"]) -> None:
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


class ScoreLine:
    """Line between two kinds of scores of the same images: the median of the slopes between all pairs (Theil and Sen).

    Unlike equal ranks it does not follow single images of which one way of scoring has lost the camera.

    Args:
        theirs: scores whose scale is known.
        ours: scores of the same images, in the same order.
    """

    def __init__(self, theirs: Float[Tensor, " n"], ours: Float[Tensor, " n"]) -> None:
        first, second = theirs.double().cpu(), ours.double().cpu()
        constant = len(first) < 2 or float(first.max()) <= float(first.min())
        self.slope = 1.0 if constant else float(theilslopes(second.numpy(), first.numpy()).slope)
        self.intercept = float((second - self.slope * first).median())
        residual = (second - self.slope * first - self.intercept).abs()
        self.agreeing = residual <= _FAR * residual.median() + 1e-9
        """Which images lie near the line (n,)."""

    def __call__(self, score: float) -> float:
        """The score of our kind that an image with this one of theirs has."""
        return self.slope * score + self.intercept


def midway(threshold: float, scores: Float[Tensor, " n"]) -> float:
    """The middle between a threshold and the largest of the scores below it; the threshold itself if there is none.

    anomalib takes the lowest score of what is to be found for the threshold, so that this one is missed by a last
    digit. All thresholds down to the next score find the same; the middle stays right longest when scores change.

    Args:
        threshold: what is above is defective.
        scores: of good images, or of all.
    """
    below = scores[scores < threshold]
    return (threshold + float(below.max())) / 2 if len(below) else threshold


def carry_over(
    post_processor: nn.Module,
    images: Callable[[float], float],
    pixels: Callable[[float], float],
    good: Float[Tensor, " n"],
) -> nn.Module:
    """A copy of anomalib's post-processor whose thresholds and limits are on our scale.

    Args:
        post_processor: calibrated on their scores; numbers it has not learned (NaN) stay so.
        images: map of the image scores.
        pixels: map of the pixel scores.
        good: their scores of good images, between which and the threshold for images there is to be room.
    """
    mine = copy.deepcopy(post_processor)
    buffers = dict(mine.named_buffers())
    if "_image_threshold" in buffers:
        buffers["_image_threshold"].fill_(midway(float(buffers["_image_threshold"]), good))
    for names, mapping in (
        (("_image_threshold", "image_min", "image_max"), images),
        (("_pixel_threshold", "pixel_min", "pixel_max"), pixels),
    ):
        for name in names:
            buffer = buffers.get(name)
            if buffer is not None and bool(buffer.isfinite().all()):
                buffer.fill_(mapping(float(buffer)))
    return mine


@torch.no_grad()
def measure(post_processor: Any, detector: Callable[[Tensor], Any], batches: Iterable[Batch]) -> Any:
    """A copy of anomalib's post-processor with the thresholds and limits of what a detector says of labeled images.

    Args:
        post_processor: how thresholds are chosen.
        detector: gives ``pred_score`` and ``anomaly_map`` of images (B, 3, H, W).
        batches: with labels, and masks if there are any.

    Raises:
        ValueError: if there are not both good and defective images.
    """
    mine = copy.deepcopy(post_processor)
    scores: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        found = detector(batch.image)
        told = batch.update(in_place=False, pred_score=found.pred_score, anomaly_map=found.anomaly_map)
        mine.on_validation_batch_end(None, None, told)
        scores.append(found.pred_score)
        labels.append(batch.gt_label)
    defective = torch.cat(labels).bool() if labels else torch.zeros(0, dtype=torch.bool)
    if not defective.any() or defective.all():
        msg = (
            f"Thresholds are measured on good and defective images, got {int((~defective).sum())} and "
            f"{int(defective.sum())}."
        )
        raise ValueError(msg)
    mine.on_validation_epoch_end(None, None)
    if mine.enable_thresholding:
        threshold = dict(mine.named_buffers())["_image_threshold"]
        threshold.fill_(midway(float(threshold), torch.cat(scores)))
    return mine
