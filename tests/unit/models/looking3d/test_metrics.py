# SPDX-License-Identifier: Apache-2.0
"""Metrics of labels and boxes against loops, in batches and at once."""

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
    found = truth + 0.15 * (torch.rand(40, 4, generator=g) - 0.5)
    label = torch.rand(40, generator=g) > 0.4
    truth[~label] = 0
    truth[3], label[3] = 0, True  # anomalous, but nobody drew a box
    return SimpleNamespace(pred_box=found, box=truth, pred_label=torch.rand(40, generator=g) > 0.3, gt_label=label)


@pytest.mark.parametrize("detected_only", [False, True])
def test_boxes_against_a_loop(queries, detected_only):
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


def test_what_was_not_detected_counts_unless_left_out(queries):
    queries.pred_label[:] = False
    every, detected = BoxIoU(), BoxIoU(detected_only=True)
    every.update(queries)
    detected.update(queries)
    assert float(every.compute()) > 0.3
    assert torch.isnan(detected.compute())


def test_accuracy(queries):
    accuracy = Accuracy()
    accuracy.update(queries)
    expected = sum(bool(a) == bool(b) for a, b in zip(queries.pred_label, queries.gt_label, strict=True)) / 40
    assert float(accuracy.compute()) == pytest.approx(expected)
