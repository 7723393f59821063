# SPDX-License-Identifier: Apache-2.0
"""Image metrics against scikit-learn, and without one of the two classes."""

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
def test_metric_is_nan_without_one_class(metric, label, caplog) -> None:
    metric.reset()
    metric.update(_batch([label] * 5))
    with caplog.at_level(logging.WARNING):
        assert torch.isnan(metric.compute())
    assert "need normal and anomalous queries" in caplog.text


def test_missing_class_is_logged_once_for_all_metrics(caplog) -> None:
    image_metrics = [AUROC(**FIELDS), AUPR(**FIELDS), F1Score(["pred_label", "gt_label"], "image_")]
    for metric in image_metrics:
        metric.update(_batch([0, 0]))
    with caplog.at_level(logging.WARNING):
        assert all(torch.isnan(metric.compute()) for metric in image_metrics)
    assert caplog.text.count("got 2 normal and 0 anomalous") == 1


def test_metrics_equal_scikit_learn_and_the_stock_metrics() -> None:
    batches = [_batch([0, 0, 0]), _batch([1, 1, 0, 0, 1], seed=1)]
    scores, labels = (torch.cat([getattr(b, name) for b in batches]) for name in ("pred_score", "gt_label"))
    area, precision, stock = AUROC(**FIELDS), AUPR(**FIELDS), metrics.AUPR(**FIELDS)
    for batch in batches:
        for metric in (area, precision, stock):
            metric.update(batch)
    assert float(area.compute()) == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert float(precision.compute()) == pytest.approx(float(stock.compute()), abs=1e-6)
