# SPDX-License-Identifier: Apache-2.0
"""What the ways to score views hand to the aggregation over points."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ViewScores:
    """Scores of one object's views, and of its photograph where there is one.

    Args:
        maps: how defective each patch of each view is (v, p, p).
        scores: how defective each view is as a whole (v,).
        photograph_map: the same of the photograph's patches (p, p), or None.
        photograph_score: the same of the photograph as a whole, a scalar, or None.
    """

    maps: Tensor
    scores: Tensor
    photograph_map: Tensor | None = None
    photograph_score: Tensor | None = None
