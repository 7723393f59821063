# SPDX-License-Identifier: Apache-2.0
"""Metrics of points: those of the object alone, besides those of all cells."""

from anomalib.metrics import AnomalibMetric
from jaxtyping import Float, Shaped
from torch import Tensor
from torchmetrics.classification import BinaryAUROC


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
