# SPDX-License-Identifier: Apache-2.0
"""Queries without a verdict: blank images, and images without the object. They are anomalous, never good."""

import logging
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from anomalib_pose.deploy.undecided import raise_undecided, undecided_score

logger = logging.getLogger(__name__)


class _Scored(Protocol):
    """A prediction or batch with scores (B,) and pose confidences (B,)."""

    @property
    def pred_score(self) -> Tensor: ...

    @property
    def pose_confidence(self) -> Tensor: ...


def decided_scores(prediction: _Scored, post_processor: nn.Module | None, paths: Sequence[str] | None = None) -> Tensor:
    """Return the scores of queries (B,); a query with a pose confidence of 0 gets a score that is labeled anomalous.

    Args:
        prediction: prediction of the detector, or batch that holds one.
        post_processor: anomalib's post-processor of the model, or None.
        paths: files of the queries, which a warning names; None for no warning.
    """
    decided = prediction.pose_confidence > 0
    if bool(decided.all()):
        return prediction.pred_score
    names = [path for path, verdict in zip(paths or (), decided.tolist(), strict=False) if not verdict]
    if names:
        logger.warning(
            "The object is not visible in %s: the image is blank, too small, or without the object. It has a pose "
            "confidence of 0 and counts as anomalous.", ", ".join(names),
        )  # fmt: skip
    return raise_undecided(prediction.pred_score, decided, undecided_score(post_processor))
