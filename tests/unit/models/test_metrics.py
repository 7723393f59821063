# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from anomalib import metrics
from anomalib.data import ImageBatch
from sklearn.metrics import roc_auc_score

from anomalib_pose.models.components.metrics import AUPR, AUROC, F1Score

FIELDS = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}


def _batch(labels: list[int], seed: int = 0) -> ImageBatch:
    scores = torch.rand(len(labels), generator=torch.Generator().manual_seed(seed))
    return ImageBatch(
        image=torch.zeros(len(labels), 3, 4, 4),
        gt_label=torch.tensor(labels),
        pred_score=scores,
        pred_label=scores > 0.5,
    )


@pytest.mark.parametrize("metric", [AUROC(**FIELDS), AUPR(**FIELDS), F1Score(["pred_label", "gt_label"], "image_")])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_gives_no_figure(metric, label, caplog) -> None:
    metric.reset()
    metric.update(_batch([label] * 5))
    with caplog.at_level(logging.WARNING):
        assert torch.isnan(metric.compute())
    assert "needs good and anomalous queries" in caplog.text


def test_both_classes_give_what_sklearn_and_the_stock_metrics_do() -> None:
    batches = [_batch([0, 0, 0]), _batch([1, 1, 0, 0, 1], seed=1)]
    scores, labels = (torch.cat([getattr(b, name) for b in batches]) for name in ("pred_score", "gt_label"))
    area, precision, stock = AUROC(**FIELDS), AUPR(**FIELDS), metrics.AUPR(**FIELDS)
    for batch in batches:
        for metric in (area, precision, stock):
            metric.update(batch)
    assert float(area.compute()) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert float(precision.compute()) == pytest.approx(float(stock.compute()), abs=1e-6)
