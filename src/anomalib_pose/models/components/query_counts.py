# SPDX-License-Identifier: Apache-2.0
"""Counts of a test or prediction: queries, low-confidence queries, and seconds."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from anomalib_pose.models.components.scene_detector import SceneDetector

logger = logging.getLogger(__name__)


class QueryCountsMixin:
    """Counts the queries of a test or prediction, and logs the counts at its end."""

    model: SceneDetector
    trainer: Any
    visualizer: Any
    log: Any
    print: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds = 0.0
        self._queries = 0
        self._low_confidence = 0

    def count_queries(self, pose_confidence: Tensor, seconds: float) -> None:
        """Add the queries of a batch.

        Args:
            pose_confidence: confidences of the poses (B,).
            seconds: duration of pose search and comparison.
        """
        self._seconds += seconds
        self._queries += len(pose_confidence)
        self._low_confidence += int((pose_confidence < self.model.estimator.retry_below).sum())

    def on_test_start(self) -> None:
        """Reset the counts of queries, low-confidence queries and seconds."""
        self._seconds, self._queries, self._low_confidence = 0.0, 0, 0

    def on_predict_start(self) -> None:
        """Reset the counts of queries, low-confidence queries and seconds."""
        self.on_test_start()

    def on_test_epoch_end(self) -> None:
        """Log the seconds per query, for pose estimation and comparison, and the number of low-confidence queries."""
        if self._queries:
            self.log("seconds_per_query", self._seconds / self._queries)
        self._log_low_confidence()

    def on_predict_epoch_end(self) -> None:
        """Log the number of low-confidence queries."""
        self._log_low_confidence()

    def _log_low_confidence(self) -> None:
        if self._low_confidence:
            memory = self.model.comparison.memory
            compared = "their reference alone" if memory is None else "their reference and the patch memory"
            logger.warning(
                "%d of %d queries have a low-confidence camera and are compared with %s.",
                self._low_confidence, self._queries, compared,
            )  # fmt: skip

    def on_test_end(self) -> None:
        """Print the folder of the pictures."""
        if self.visualizer is not None:
            folder = Path(self.visualizer.output_dir or Path(self.trainer.default_root_dir) / "images")
            self.print(f"Pictures (query | reference | mask | heat map | predicted mask): {folder}")
