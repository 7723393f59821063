# SPDX-License-Identifier: Apache-2.0
"""Metrics of clouds: of objects, of all cells of the grid, and of the cells that hold a point."""

from anomalib.metrics import AnomalibMetric, Evaluator
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics.classification import BinaryAUROC

from anomalib_pose.models.components.metrics import AUPR, AUPRO, AUROC, DataEvaluator, F1Score, NeedsBothClasses


class _ForegroundBinaryAUROC(BinaryAUROC):
    """AUROC of the cells that hold a point."""

    def update(
        self,
        values: Float[Tensor, "b s s"],
        truth: Shaped[Tensor, "b s s"],
        valid: Shaped[Tensor, "b s s"],
    ) -> None:
        """Add maps.

        Args:
            values: scores of the cells in [0, 1]; torchmetrics applies a sigmoid to batches with other values.
            truth: defective cells.
            valid: cells that hold a point.
        """
        foreground = valid.bool()
        super().update(values[foreground], truth[foreground].int())


class ForegroundAUROC(NeedsBothClasses, AnomalibMetric, _ForegroundBinaryAUROC):  # type: ignore[misc]
    """AUROC over the cells that hold a point.

    Papers report the AUROC over all cells. Most of these are background with score 0, which every detector gets right.
    """

    default_fields = ("point_scores", "gt_mask", "valid")


def cloud_evaluator() -> Evaluator:
    """Create the metrics: AUROC, average precision and F1 of objects; AUROC, foreground AUROC, AUPRO and F1 of cells.

    All but F1 read scores before normalization. Normalization clips scores far from the threshold, and clipped scores
    tie.
    """
    image, pixel = ["object_score", "gt_label"], ["point_scores", "gt_mask"]
    return DataEvaluator(
        test_metrics=[
            AUROC(fields=image, prefix="image_"),
            AUPR(fields=image, prefix="image_"),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            AUROC(fields=pixel, prefix="pixel_", strict=False),
            ForegroundAUROC(prefix="pixel_", strict=False),
            AUPRO(fields=pixel, prefix="pixel_", strict=False),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
        ]
    )
