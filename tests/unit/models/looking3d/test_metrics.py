# SPDX-License-Identifier: Apache-2.0
"""Metrics of labels and boxes agree with loops over queries, in several batches."""

from types import SimpleNamespace

import pytest
import torch

from anomalib_pose.models.looking3d.metrics import Accuracy, BoxAccuracy, BoxIoU


def overlap(one: list[float], other: list[float]) -> float:
    sides = []
    for axis in (0, 1):
        ends = [(box[axis] - box[axis + 2] / 2, box[axis] + box[axis + 2] / 2) for box in (one, other)]
        sides.append(max(0.0, min(end for _, end in ends) - max(start for start, _ in ends)))
    inside = sides[0] * sides[1]
    return inside / (one[2] * one[3] + other[2] * other[3] - inside)


@pytest.fixture
def queries() -> SimpleNamespace:
    g = torch.Generator().manual_seed(0)
    truth = torch.cat([0.4 + 0.2 * torch.rand(40, 2, generator=g), 0.1 + 0.3 * torch.rand(40, 2, generator=g)], 1)
    predicted = truth + 0.15 * (torch.rand(40, 4, generator=g) - 0.5)
    label = torch.rand(40, generator=g) > 0.4
    truth[~label] = 0
    truth[3], label[3] = 0, True  # anomalous without a true box
    return SimpleNamespace(pred_box=predicted, box=truth, pred_label=torch.rand(40, generator=g) > 0.3, gt_label=label)


@pytest.mark.parametrize("detected_only", [False, True])
def test_box_metrics_agree_with_a_loop(queries, detected_only):
    values = [
        overlap(queries.pred_box[i].tolist(), queries.box[i].tolist())
        for i in range(40)
        if queries.gt_label[i] and i != 3 and (queries.pred_label[i] or not detected_only)
    ]
    expected = {BoxIoU: sum(values) / len(values), BoxAccuracy: sum(value > 0.5 for value in values) / len(values)}
    assert 0.1 < expected[BoxAccuracy] < 0.9
    for metric, truth in expected.items():
        one = metric(detected_only=detected_only)
        for part in (slice(0, 7), slice(7, 40)):
            one.update(SimpleNamespace(**{name: value[part] for name, value in vars(queries).items()}))
        assert float(one.compute()) == pytest.approx(truth, abs=1e-6)


def test_undetected_anomalies_count_unless_detected_only(queries):
    queries.pred_label[:] = False
    anomalous, detected = BoxIoU(), BoxIoU(detected_only=True)
    anomalous.update(queries)
    detected.update(queries)
    assert float(anomalous.compute()) > 0.3
    assert torch.isnan(detected.compute())


def test_accuracy_agrees_with_a_loop(queries):
    accuracy = Accuracy()
    accuracy.update(queries)
    expected = sum(bool(a) == bool(b) for a, b in zip(queries.pred_label, queries.gt_label, strict=True)) / 40
    assert float(accuracy.compute()) == pytest.approx(expected)
