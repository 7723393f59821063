# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from sklearn.metrics import f1_score

from anomalib_pose.deploy.thresholds import ScoreLine, ScoreMap, carry_over, measure, midway

SCORES = torch.tensor([0.5, 1.0, 2.0, 3.0, 6.0, 7.0, 1.5])
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1])


def batches() -> list[ImageBatch]:
    """Images whose mean is their score; the defective ones have a defective row, three times as high as the rest."""
    found = []
    for score, label in zip(SCORES, LABELS, strict=True):
        image, mask = torch.full((1, 3, 4, 4), float(score)), torch.zeros(1, 4, 4, dtype=torch.bool)
        mask[:, 2] = bool(label)
        image[:, :, 2] *= 1 + 2 * label
        found.append(ImageBatch(image=image, gt_mask=mask, gt_label=label[None].bool()))
    return found


def detector(images: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(pred_score=images[:, 0, 0, 0], anomaly_map=images[:, :1])


def test_score_map_carries_ranks_over():
    theirs = torch.rand(500, generator=torch.Generator().manual_seed(0))
    mapping = ScoreMap(theirs, 3 * theirs.flip(0) + 1)
    for score in (0.1, 0.5, 0.9, 1.5, -0.5):
        assert mapping(score) == pytest.approx(3 * score + 1, abs=0.05)
    with pytest.raises(ValueError, match="scores of both kinds"):
        ScoreMap(theirs, theirs[:0])


def test_a_line_between_scores_does_not_follow_single_images():
    generator = torch.Generator().manual_seed(0)
    theirs = torch.rand(40, generator=generator) * 10
    ours = 0.9 * theirs + 0.2 + 0.05 * torch.randn(40, generator=generator)
    ours[theirs.argsort()[20:25]] = 30.0  # cameras that our way has lost
    line = ScoreLine(theirs, ours)
    for score in (1.0, 4.0, 12.0):
        assert line(score) == pytest.approx(0.9 * score + 0.2, abs=0.15)
    assert torch.equal(line.agreeing, ours < 30)
    assert ScoreLine(torch.ones(3), torch.tensor([2.0, 2.0, 5.0]))(1.0) == pytest.approx(2.0)


def test_a_threshold_between_two_scores_is_as_far_from_both():
    assert midway(6.0, SCORES) == pytest.approx(4.5)
    assert midway(4.0, SCORES) == pytest.approx(3.5)
    assert midway(0.5, SCORES) == pytest.approx(0.5)  # nothing is below
    assert midway(float("nan"), SCORES) != midway(float("nan"), SCORES)


def test_a_carried_over_threshold_leaves_a_margin_on_both_sides():
    processor = PostProcessor()
    processor._image_threshold.fill_(6.0)  # the lowest defect that was found, as anomalib chooses it
    theirs = torch.cat([SCORES, torch.linspace(0, 10, 200)])
    carried = carry_over(processor, ScoreMap(theirs, 2 * theirs), ScoreMap(theirs, theirs), good=SCORES[:4])
    assert float(carried._image_threshold) == pytest.approx(9.0, abs=0.1)
    assert float(processor._image_threshold) == 6.0


def test_measured_thresholds_are_the_ones_of_best_f1():
    own = measure(PostProcessor(), detector, batches())
    best = max(f1_score(LABELS, scores) for scores in ((level <= SCORES).int() for level in SCORES))
    labels = own(InferenceBatch(pred_score=SCORES, anomaly_map=SCORES[:, None, None])).pred_label
    assert f1_score(LABELS, labels) == pytest.approx(best)
    assert float(own.image_threshold) == pytest.approx(4.5)  # between 3 and 6, where rounding changes no label
    assert (float(own.image_min), float(own.image_max)) == pytest.approx((0.5, 7.0))
    # pixels: the defective rows have 4.5, 18 and 21, all others at most 7
    assert 4.5 <= float(own.pixel_threshold) <= 18
    assert float(own.pixel_max) == pytest.approx(21)


def test_without_a_defect_nothing_can_be_measured():
    with pytest.raises(ValueError, match="good and defective images"):
        measure(PostProcessor(), detector, batches()[:4])
