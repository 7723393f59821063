# SPDX-License-Identifier: Apache-2.0
"""Figures of a run of ``pose_agnostic.py``: areas under curves, their intervals, pose errors. None uses a threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from splat_pose import accuracy
from torch import Tensor

from anomalib_pose.geometry import pose_error

REPLICATES = 2000
_BOTH = 2


def image_auroc(scores: Sequence[float], labels: Sequence[int]) -> float | None:
    """Return the fraction of (defective, good) pairs of queries in the right order, ties half; None without pairs."""
    wins = _wins(scores, labels)
    return float(wins.mean()) if wins.size else None


def bootstrap_interval(
    scores: Sequence[float], labels: Sequence[int], seed: int, replicates: int = REPLICATES
) -> tuple[float, float] | None:
    """Return the 95% bootstrap interval of the image AUROC; good and defective queries are resampled separately.

    Args:
        scores: scores of the queries.
        labels: 1 for a defect.
        seed: seed of the samples: first the good queries of all replicates, then the defective queries.
        replicates: number of samples.

    Returns:
        Lower and upper end; None without queries of both kinds.
    """
    wins = _wins(scores, labels)
    if not wins.size:
        return None
    rng = np.random.default_rng(seed)
    bad, good = wins.shape
    good_counts = _counts(rng.integers(good, size=(replicates, good)), good)
    bad_counts = _counts(rng.integers(bad, size=(replicates, bad)), bad)
    areas = (bad_counts @ wins * good_counts).sum(1) / wins.size
    low, high = np.percentile(areas, [2.5, 97.5])
    return float(low), float(high)


def _wins(scores: Sequence[float], labels: Sequence[int]) -> np.ndarray:
    """Return (defective, good): 1 where the defective query has the higher score, 0.5 where the scores are equal."""
    values, defective = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    difference = values[defective][:, None] - values[~defective][None]
    return (np.sign(difference) + 1) / 2


def _counts(samples: np.ndarray, count: int) -> np.ndarray:
    """Count how often each of ``count`` queries is in each row of the samples."""
    return np.stack([np.bincount(row, minlength=count) for row in samples])


def worst_ranked(scores: Sequence[float], labels: Sequence[int], count: int) -> list[int]:
    """Return the queries with the most wrongly ordered pairs, the worst first.

    For equal numbers of pairs, the query whose score is farther on the wrong side comes first.
    """
    values, defective = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    losses = np.zeros(len(values))
    wins = _wins(scores, labels)
    if wins.size:
        losses[defective], losses[~defective] = 1 - wins.mean(1), 1 - wins.mean(0)
    wrong_side = np.where(defective, -values, values)
    return np.lexsort((-wrong_side, -losses))[:count].tolist()


def pixel_figures(maps: Tensor, scores: Tensor, labels: Tensor, masks: Tensor | None) -> dict[str, float | None]:
    """Compute pixel AUROC and AUPRO of maps (n, h, w); None without masks of defects."""
    if masks is None or not bool((masks > 0).any()) or len(labels.unique()) < _BOTH:
        return {"pixel_auroc": None, "aupro": None}
    figures = accuracy(maps, scores, {"label": labels, "mask": masks})
    return {"pixel_auroc": figures["pixel_auroc"], "aupro": figures["pixel_aupro"]}


def pose_errors(estimates: Tensor, truth: Tensor, center: Tensor) -> tuple[list[float], list[float]]:
    """Compute angles in degrees, and distances of the camera centers in percent of the distance from the object.

    Args:
        estimates: camera-to-world poses (n, 4, 4).
        truth: camera-to-world poses (n, 4, 4).
        center: center of the object (3,).
    """
    estimates, truth, center = estimates.double().cpu(), truth.double().cpu(), center.double().cpu()
    angle, distance = pose_error(estimates, truth)
    object_distance = (truth[:, :3, 3] - center).norm(dim=1)
    return torch.rad2deg(angle).tolist(), (100 * distance / object_distance).tolist()


def pose_figures(angles: list[float], percents: list[float]) -> dict[str, Any]:
    """Compute fractions of queries within 1 degree, within 1 degree and 1%, beyond 5 degrees or 5%, and medians."""
    if not angles:
        names = ("within_1_deg", "within_1_deg_1_percent", "failed_poses", "median_deg", "median_percent")
        return dict.fromkeys(names)
    angle, percent = np.array(angles), np.array(percents)
    return {
        "within_1_deg": float((angle < 1).mean()),
        "within_1_deg_1_percent": float(((angle < 1) & (percent < 1)).mean()),
        "failed_poses": float(((angle > 5) | (percent > 5)).mean()),
        "median_deg": float(np.median(angle)),
        "median_percent": float(np.median(percent)),
    }
