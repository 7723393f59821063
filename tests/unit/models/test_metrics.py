# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-learn, without one of the two classes, and without data."""

import logging

import pytest
import torch
from anomalib import metrics
from anomalib.data import ImageBatch
from lightning import LightningModule, Trainer
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from anomalib_pose.data import PoseBatch
from anomalib_pose.models.components.metrics import (
    AUPR,
    AUPRO,
    AUROC,
    DataEvaluator,
    F1Score,
    MedianAngleError,
)

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


MASKS = {"none": None, "empty": torch.zeros(4, 8, 8), "full": torch.ones(4, 8, 8), "part": torch.eye(8).repeat(4, 1, 1)}
IMAGE_NAMES, PIXEL_NAMES = {"image_AUROC"}, {"pixel_AUROC", "pixel_AUPRO", "pixel_F1Score"}


@pytest.mark.parametrize("barebones", [False, True])
@pytest.mark.parametrize(
    ("labels", "masks", "poses", "expected"),
    [
        ([0, 1, 0, 1], "part", True, {*IMAGE_NAMES, *PIXEL_NAMES, "pose_MedianAngleError"}),
        ([0, 1, 0, 1], "none", False, IMAGE_NAMES),
        ([0, 1, 0, 1], "empty", False, IMAGE_NAMES),
        ([0, 1, 0, 1], "full", False, IMAGE_NAMES),
        ([0, 0, 0, 0], "empty", True, {"pose_MedianAngleError"}),
        ([1, 1, 1, 1], "part", False, PIXEL_NAMES),
        ([1, 1, 1, 1], "none", False, set()),
        (None, "none", False, set()),
    ],
)
def test_metrics_without_data_are_left_out(labels, masks, poses, expected, barebones, recwarn) -> None:
    """The whole way through Lightning, as `anomalib test` takes it."""
    pixel = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
    evaluator = DataEvaluator(
        test_metrics=[
            AUROC(**FIELDS, strict=False),
            AUROC(**pixel),
            AUPRO(**pixel),
            F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
            MedianAngleError(prefix="pose_", strict=False),
        ]
    )
    mask = MASKS[masks]
    batch = PoseBatch(
        image=torch.zeros(4, 3, 8, 8),
        gt_label=None if labels is None else torch.tensor(labels),
        gt_mask=None if mask is None else mask.bool(),
        pred_score=torch.rand(4),
        anomaly_map=torch.rand(4, 1, 8, 8),
        pred_mask=torch.rand(4, 1, 8, 8) > 0.5,
        estimated_camera_to_world=torch.eye(4).repeat(4, 1, 1),
        camera_to_world=torch.eye(4).repeat(4, 1, 1) if poses else None,
    )

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.evaluator = evaluator

        def configure_callbacks(self):
            return [evaluator]

        def test_step(self, batch):
            return batch

    trainer = (
        Trainer(accelerator="cpu", barebones=barebones)
        if barebones
        else Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    )
    for _ in range(2):  # a second test of the same model counts nothing twice
        trainer.test(Module(), DataLoader([batch], batch_size=None), verbose=False)
        assert set(trainer.callback_metrics) == expected
        trainer.callback_metrics.clear()
    assert not [warning for warning in recwarn if "compute" in str(warning.message)]
