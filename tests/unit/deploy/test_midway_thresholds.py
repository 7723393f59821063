# SPDX-License-Identifier: Apache-2.0
"""Thresholds of a model's post-processor lie between scores, so that every detected query is labeled as defective."""

import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from sklearn.metrics import f1_score

from anomalib_pose.deploy.thresholds import MidwayThreshold, use_midway_thresholds

CASES = {
    "separated": ([0.1, 0.2, 0.3, 0.7, 0.8], [0, 0, 0, 1, 1], 0.5),
    "one of each class": ([1.0, 2.0], [0, 1], 1.5),
    "ties of defective queries": ([1.0, 3.0, 3.0, 3.0], [0, 1, 1, 1], 2.0),
    "ties of good queries": ([1.0, 1.0, 1.0, 3.0], [0, 0, 0, 1], 2.0),
    "ties of both classes": ([1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1], 1.5),
    "overlap": ([1.0, 3.0, 2.0, 4.0, 5.0, 6.0], [0, 0, 1, 1, 1, 1], 1.5),
    "negative": ([-5.0, -4.0, -1.0], [0, 0, 1], -2.5),
    "good queries alone": ([1.0, 2.0, 3.0], [0, 0, 0], 3.0),
    "one good query": ([2.0], [0], 2.0),
    "defective queries alone": ([1.0, 2.0, 3.0], [1, 1, 1], 0.998),
    "one defective query": ([2.0], [1], 1.998),
    "all scores equal": ([2.0, 2.0, 2.0], [0, 1, 1], 1.998),
    "lowest score is defective": ([1.0, 2.0, 3.0], [1, 0, 1], 0.998),
    "reversed": ([3.0, 1.0], [0, 1], 0.998),
    "zero": ([0.0, 0.0], [0, 1], -1e-6),
}


def batch(scores: list[float], labels: list[int]) -> ImageBatch:
    values = torch.tensor(scores)
    return ImageBatch(
        image=torch.zeros(len(values), 3, 2, 2),
        pred_score=values,
        anomaly_map=values[:, None, None].expand(-1, 2, 2).clone(),
        gt_label=torch.tensor(labels).bool(),
        gt_mask=torch.tensor(labels).bool()[:, None, None].expand(-1, 2, 2).clone(),
    )


def validated(scores: list[float], labels: list[int], **settings: bool) -> PostProcessor:
    processor = PostProcessor(**settings)
    use_midway_thresholds(processor)
    for score, label in zip(scores, labels, strict=True):
        processor.on_validation_batch_end(None, None, batch([score], [label]))
    processor.on_validation_epoch_end(None, None)
    return processor


@pytest.mark.parametrize("name", CASES)
def test_a_threshold_lies_between_scores(name):
    scores, labels, expected = CASES[name]
    processor = validated(scores, labels)
    assert float(processor.image_threshold) == pytest.approx(expected, abs=1e-6)
    assert float(processor.pixel_threshold) == pytest.approx(expected, abs=1e-6)
    queries = batch(scores, labels)
    processor.post_process_batch(queries)
    best = max(f1_score(labels, torch.tensor(scores) >= level, zero_division=1.0) for level in [*scores, 9.0])
    assert f1_score(labels, queries.pred_label, zero_division=1.0) == pytest.approx(best)
    assert torch.equal(queries.pred_mask.flatten(1).all(1), queries.pred_label)


def test_adjacent_floating_point_numbers_are_separated():
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    metric = MidwayThreshold(fields=["pred_score", "gt_label"])
    metric.update(batch([float(low), float(high)], [0, 1]))
    assert low <= metric.compute() < high


def test_state_and_settings_of_the_post_processor_stay():
    stock, changed = PostProcessor(image_sensitivity=0.4), PostProcessor(image_sensitivity=0.4)
    use_midway_thresholds(changed)
    assert changed.state_dict().keys() == stock.state_dict().keys()
    assert changed.checkpoint_config() == stock.checkpoint_config()
    use_midway_thresholds(None)
    use_midway_thresholds(torch.nn.Identity())
    assert type(stock._image_threshold_metric) is F1AdaptiveThreshold
    assert type(changed._pixel_threshold_metric) is MidwayThreshold


def test_a_second_validation_starts_again():
    processor = validated(*CASES["separated"][:2])
    for _ in range(2):
        processor.on_validation_batch_end(None, None, batch([1.0, 2.0], [0, 1]))
        processor.on_validation_epoch_end(None, None)
        assert float(processor.image_threshold) == pytest.approx(1.5)
