# SPDX-License-Identifier: Apache-2.0
"""Figures of a run of ``pose_agnostic.py``: areas under curves, their intervals, pose errors. None has a threshold."""

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
    """Share of pairs of a defective and a good query that are ranked rightly, ties half; None without pairs."""
    wins = _wins(scores, labels)
    return float(wins.mean()) if wins.size else None


def bootstrap_interval(
    scores: Sequence[float], labels: Sequence[int], seed: int, replicates: int = REPLICATES
) -> tuple[float, float] | None:
    """95% interval of the image AUROC: percentiles over queries drawn again, good and defective ones apart.

    Args:
        scores: of the queries.
        labels: 1 for a defect.
        seed: of the draws: first the good queries of all replicates, then the defective ones.
        replicates: how many draws.

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
    """(defective, good): 1 where the defective query has the higher score, 0.5 where both are equal."""
    values, defective = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    difference = values[defective][:, None] - values[~defective][None]
    return (np.sign(difference) + 1) / 2


def _counts(drawn: np.ndarray, count: int) -> np.ndarray:
    """How often each of ``count`` queries is in each row of draws."""
    return np.stack([np.bincount(row, minlength=count) for row in drawn])


def worst_ranked(scores: Sequence[float], labels: Sequence[int], count: int) -> list[int]:
    """Queries that the most of the other kind are ranked wrongly with, the worst first.

    Of equally bad ones the first is the one that lies farther on the wrong side.
    """
    values, defective = np.asarray(scores, dtype=np.float64), np.asarray(labels) > 0
    losses = np.zeros(len(values))
    wins = _wins(scores, labels)
    if wins.size:
        losses[defective], losses[~defective] = 1 - wins.mean(1), 1 - wins.mean(0)
    wrongly = np.where(defective, -values, values)
    return np.lexsort((-wrongly, -losses))[:count].tolist()


def pixel_figures(maps: Tensor, scores: Tensor, labels: Tensor, masks: Tensor | None) -> dict[str, float | None]:
    """Pixel AUROC and AUPRO of maps (n, h, w); None without masks of defects."""
    if masks is None or not bool((masks > 0).any()) or len(labels.unique()) < _BOTH:
        return {"pixel_auroc": None, "aupro": None}
    found = accuracy(maps, scores, {"label": labels, "mask": masks})
    return {"pixel_auroc": found["pixel_auroc"], "aupro": found["pixel_aupro"]}


def pose_errors(estimates: Tensor, truth: Tensor, center: Tensor) -> tuple[list[float], list[float]]:
    """Angles in degrees, and distances of the optical centers in percent of the camera's distance from the object.

    Args:
        estimates: camera-to-world poses (n, 4, 4).
        truth: camera-to-world poses (n, 4, 4).
        center: of the object (3,).
    """
    estimates, truth, center = estimates.double().cpu(), truth.double().cpu(), center.double().cpu()
    angle, distance = pose_error(estimates, truth)
    away = (truth[:, :3, 3] - center).norm(dim=1)
    return torch.rad2deg(angle).tolist(), (100 * distance / away).tolist()


def pose_figures(angles: list[float], percents: list[float]) -> dict[str, Any]:
    """Shares of queries within a degree, within a degree and 1% of the distance, beyond 5 of either, and medians."""
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
