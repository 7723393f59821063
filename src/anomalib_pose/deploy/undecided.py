# SPDX-License-Identifier: Apache-2.0
"""Scores of images without a verdict: such an image is never labeled good."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


def undecided_score(post_processor: nn.Module | None) -> float:
    """Return the lowest score that anomalib's post-processor normalizes to 1, and so labels anomalous.

    Args:
        post_processor: anomalib's post-processor; None, or one without thresholds, for the score 1.
    """
    threshold, low, high = (
        float(getattr(post_processor, name, math.nan)) for name in ("image_threshold", "image_min", "image_max")
    )
    score = threshold + (high - low)
    return score if math.isfinite(score) and score > threshold else 1.0


def raise_undecided(scores: Float[Tensor, " b"], decided: Bool[Tensor, " b"], minimum: float) -> Float[Tensor, " b"]:
    """Raise the scores of images without a verdict to a minimum; a score that is not finite becomes the minimum.

    Args:
        scores: image scores.
        decided: whether an image has a verdict.
        minimum: see ``undecided_score``.
    """
    raised = torch.where(scores > minimum, scores, torch.full_like(scores, minimum))
    return torch.where(decided, scores, raised)
