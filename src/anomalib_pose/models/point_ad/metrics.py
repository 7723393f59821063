# SPDX-License-Identifier: Apache-2.0
"""Metrics of clouds: of objects, of all cells, and of those that hold a point."""

from anomalib import metrics as stock
from anomalib.metrics import AnomalibMetric, Evaluator
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics.classification import BinaryAUROC

from anomalib_pose.models.components.metrics import AUPR, AUROC, F1Score


class _AmongPoints(BinaryAUROC):
    """AUROC of the cells that hold a point."""

    def update(
        self,
        values: Float[Tensor, "b s s"],
        truth: Shaped[Tensor, "b s s"],
        valid: Shaped[Tensor, "b s s"],
    ) -> None:
        """Add maps.

        Args:
            values: scores of the cells, in [0, 1]: others would be squeezed batch by batch.
            truth: defective cells.
            valid: cells that hold a point.
        """
        counted = valid.bool()
        super().update(values[counted], truth[counted].int())


class ForegroundAUROC(AnomalibMetric, _AmongPoints):
    """AUROC over cells that hold a point.

    Over all cells, as papers report it, most are background at 0, which every detector gets right.
    """

    default_fields = ("point_scores", "gt_mask", "valid")


def cloud_evaluator() -> Evaluator:
    """Of objects AUROC and average precision, of cells AUROC over all and over those with a point, and AUPRO.

    They read the scores before normalization, which cuts off what is far from the threshold: what ties then counts
    for neither side.
    """
    image, pixel = ["object_score", "gt_label"], ["point_scores", "gt_mask"]
    return Evaluator(
        test_metrics=[
            AUROC(fields=image, prefix="image_"),
            AUPR(fields=image, prefix="image_"),
            F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
            stock.AUROC(fields=pixel, prefix="pixel_", strict=False),
            ForegroundAUROC(prefix="pixel_", strict=False),
            stock.AUPRO(fields=pixel, prefix="pixel_", strict=False),
            stock.F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
        ]
    )
