# SPDX-License-Identifier: Apache-2.0
"""Thresholds of models and exported detectors: placed midway between scores, transferred, or calibrated on data."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from anomalib.data import Batch
from anomalib.metrics import F1AdaptiveThreshold
from jaxtyping import Float
from scipy.stats import theilslopes
from torch import Tensor, nn

_QUANTILES = 400
_RAREST = 1e-6
_MAX_RESIDUAL = 6.0  # times the median residual: four standard deviations
_MARGIN = 1e-3
"""Distance of a threshold below the lowest of all scores, as a fraction of the range of the scores."""
_METRICS = ("_image_threshold_metric", "_pixel_threshold_metric")
"""Metrics of anomalib's post-processor that choose the thresholds."""


class ScoreMap:
    """Monotone map from source scores to target scores that have the same rank.

    Beyond the scores that it was fitted to, the map continues with the slope between the median and the largest score.

    Args:
        source: scores on the scale that the map takes.
        target: scores of the same images or pixels on the scale that the map returns, in any order.
    """

    def __init__(self, source: Float[Tensor, " n"], target: Float[Tensor, " m"]) -> None:
        if not len(source) or not len(target):
            msg = f"A score map needs scores of both kinds, got {len(source)} source and {len(target)} target scores."
            raise ValueError(msg)
        levels = 1 - torch.logspace(0, torch.tensor(_RAREST).log10().item(), _QUANTILES, dtype=torch.float64)
        self.source, self.target = _quantiles(source, levels), _quantiles(target, levels)

    def __call__(self, score: float) -> float:
        """Return the target score of the same rank.

        Args:
            score: a source score.
        """
        source, target = self.source, self.target
        middle = len(source) // 2
        slope = float((target[-1] - target[middle]) / (source[-1] - source[middle]).clamp(min=1e-9))
        if score >= float(source[-1]):
            return float(target[-1]) + slope * (score - float(source[-1]))
        if score <= float(source[0]):
            return float(target[0]) + slope * (score - float(source[0]))
        upper = int(torch.searchsorted(source, torch.tensor(score, dtype=source.dtype), right=True))
        low, high = float(source[upper - 1]), float(source[upper])
        fraction = (score - low) / max(high - low, 1e-12)
        return float(target[upper - 1]) + fraction * float(target[upper] - target[upper - 1])


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Return the quantiles of values at levels in [0, 1], with linear interpolation."""
    ordered = values.flatten().double().cpu().sort().values
    position = levels * (len(ordered) - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)


class ScoreLine:
    """Line from source scores to target scores of the same images: the median of all pairwise slopes (Theil and Sen).

    Unlike a map between ranks, the line ignores single images for which model or detector estimated a wrong pose.

    Args:
        source: scores on the scale that the line takes.
        target: scores of the same images on the scale that the line returns, in the same order.
    """

    def __init__(self, source: Float[Tensor, " n"], target: Float[Tensor, " n"]) -> None:
        source, target = source.double().cpu(), target.double().cpu()
        constant = len(source) < 2 or float(source.max()) <= float(source.min())
        self.slope = 1.0 if constant else float(theilslopes(target.numpy(), source.numpy()).slope)
        self.intercept = float((target - self.slope * source).median())
        residuals = (target - self.slope * source - self.intercept).abs()
        self.inliers = residuals <= _MAX_RESIDUAL * residuals.median() + 1e-9
        """Mask of the images near the line (n,)."""

    def __call__(self, score: float) -> float:
        """Return the target score on the line.

        Args:
            score: a source score.
        """
        return self.slope * score + self.intercept


def midway_threshold(threshold: float, scores: Float[Tensor, " n"]) -> float:
    """Return the middle between a threshold and the largest score below it; the threshold itself if there is none.

    anomalib chooses the lowest score of a detected defect as the threshold, but labels only larger scores as defective.
    All thresholds down to the next score detect the same images. The middle tolerates the largest change of scores.

    Args:
        threshold: scores above it count as defective.
        scores: scores of normal images, or of all images.
    """
    below = scores[scores < threshold]
    return (threshold + float(below.max())) / 2 if len(below) else threshold


class MidwayThreshold(F1AdaptiveThreshold):
    """Threshold with the best F1, midway between the lowest detected score and the next lower score.

    If no score is lower, the threshold is below the lowest score by a thousandth of the range of the scores. Without
    defective samples it is the largest score, as in anomalib, so that no sample counts as defective.
    """

    def compute(self) -> Tensor:
        """Return the threshold."""
        threshold = super().compute()
        if not self._has_anomalous_samples() or bool(threshold.isinf()):
            return threshold
        scores = torch.cat([batch.flatten() for batch in self.preds])
        middle = threshold.new_tensor(midway_threshold(float(threshold), scores))
        if bool(middle < threshold):
            return middle
        lower = scores[scores < threshold]
        if len(lower):  # the next floating-point number: rounding to even can return the threshold itself
            return lower.max().to(threshold)
        spread = float(scores.max() - scores.min()) or max(abs(float(threshold)), _MARGIN)
        return threshold - _MARGIN * spread


def use_midway_thresholds(post_processor: Any) -> None:
    """Make a post-processor of anomalib place its thresholds midway between scores, in place.

    Thresholds that the post-processor holds already stay. Its state dict and its settings do not change.

    Args:
        post_processor: post-processor; one without anomalib's adaptive thresholds stays as it is.
    """
    for name in _METRICS:
        metric: Any = getattr(post_processor, name, None)
        if type(metric) is F1AdaptiveThreshold:
            setattr(post_processor, name, MidwayThreshold(fields=metric.fields, strict=False).to(metric.device))
            post_processor.thresholds_are_midway = True


def transfer_thresholds(
    post_processor: nn.Module,
    image_map: Callable[[float], float],
    pixel_map: Callable[[float], float],
    normal_scores: Float[Tensor, " n"],
) -> nn.Module:
    """Return a copy of the model's post-processor with thresholds and limits on the detector's scale.

    Args:
        post_processor: anomalib's post-processor of the model; values that it has not learned (NaN) stay NaN.
        image_map: map from image scores of the model to those of the detector.
        pixel_map: map from pixel scores of the model to those of the detector.
        normal_scores: the model's scores of normal images. An image threshold that equals a score, as that of an
            older checkpoint, moves halfway to the largest of these scores below it.
    """
    transferred = copy.deepcopy(post_processor)
    buffers = dict(transferred.named_buffers())
    if "_image_threshold" in buffers and not getattr(post_processor, "thresholds_are_midway", False):
        threshold = buffers["_image_threshold"]
        threshold.fill_(midway_threshold(float(threshold), normal_scores))
    for names, mapping in (
        (("_image_threshold", "image_min", "image_max"), image_map),
        (("_pixel_threshold", "pixel_min", "pixel_max"), pixel_map),
    ):
        for name in names:
            buffer = buffers.get(name)
            if buffer is not None and bool(buffer.isfinite().all()):
                buffer.fill_(mapping(float(buffer)))
    return transferred


@torch.no_grad()
def calibrate_thresholds(post_processor: Any, detector: Callable[[Tensor], Any], batches: Iterable[Batch]) -> Any:
    """Return a copy of the post-processor with thresholds and limits from a detector's scores of labeled images.

    Args:
        post_processor: anomalib's post-processor, which chooses the thresholds.
        detector: returns ``pred_score`` and ``anomaly_map`` of images (B, 3, H, W).
        batches: batches with labels, and with masks if there are any.

    Raises:
        ValueError: if there are no normal or no defective images.
    """
    calibrated = copy.deepcopy(post_processor)
    use_midway_thresholds(calibrated)
    labels: list[Tensor] = []
    for batch in batches:
        prediction = detector(batch.image)
        scored = batch.update(in_place=False, pred_score=prediction.pred_score, anomaly_map=prediction.anomaly_map)
        calibrated.on_validation_batch_end(None, None, scored)
        labels.append(batch.gt_label)
    defective = torch.cat(labels).bool() if labels else torch.zeros(0, dtype=torch.bool)
    if not defective.any() or defective.all():
        msg = (
            f"Thresholds need normal and defective validation images, got {int((~defective).sum())} normal and "
            f"{int(defective.sum())} defective ones."
        )
        raise ValueError(msg)
    calibrated.on_validation_epoch_end(None, None)
    return calibrated
