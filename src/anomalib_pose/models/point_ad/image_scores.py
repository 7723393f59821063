# SPDX-License-Identifier: Apache-2.0
"""Scores of the images of one cloud: its rendered views and its photograph."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageScores:
    """Anomaly scores of one cloud's images; higher is more anomalous.

    Args:
        view_maps: score of each patch of each view (v, p, p).
        view_scores: score of each whole view (v,).
        photograph_map: score of each patch of the photograph (p, p); None if there is no photograph.
        photograph_score: score of the whole photograph, a scalar; None if there is no photograph.
    """

    view_maps: Tensor
    view_scores: Tensor
    photograph_map: Tensor | None = None
    photograph_score: Tensor | None = None
