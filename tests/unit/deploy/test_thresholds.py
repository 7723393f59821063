# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from sklearn.metrics import f1_score

from anomalib_pose.deploy.thresholds import (
    ScoreLine,
    ScoreMap,
    calibrate_thresholds,
    midway_threshold,
    transfer_thresholds,
)

SCORES = torch.tensor([0.5, 1.0, 2.0, 3.0, 6.0, 7.0, 1.5])
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1])


def batches() -> list[ImageBatch]:
    """Images whose mean is their score; defective images have a defective row, three times as high as the rest."""
    images = []
    for score, label in zip(SCORES, LABELS, strict=True):
        image, mask = torch.full((1, 3, 4, 4), float(score)), torch.zeros(1, 4, 4, dtype=torch.bool)
        mask[:, 2] = bool(label)
        image[:, :, 2] *= 1 + 2 * label
        images.append(ImageBatch(image=image, gt_mask=mask, gt_label=label[None].bool()))
    return images


def detector(images: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(pred_score=images[:, 0, 0, 0], anomaly_map=images[:, :1])


def test_a_score_map_keeps_ranks():
    source = torch.rand(500, generator=torch.Generator().manual_seed(0))
    mapping = ScoreMap(source, 3 * source.flip(0) + 1)
    for score in (0.1, 0.5, 0.9, 1.5, -0.5):
        assert mapping(score) == pytest.approx(3 * score + 1, abs=0.05)
    with pytest.raises(ValueError, match="scores of both kinds"):
        ScoreMap(source, source[:0])


def test_a_score_line_ignores_single_images():
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(40, generator=generator) * 10
    target = 0.9 * source + 0.2 + 0.05 * torch.randn(40, generator=generator)
    target[source.argsort()[20:25]] = 30.0  # images with a wrong pose estimate
    line = ScoreLine(source, target)
    for score in (1.0, 4.0, 12.0):
        assert line(score) == pytest.approx(0.9 * score + 0.2, abs=0.15)
    assert torch.equal(line.inliers, target < 30)
    assert ScoreLine(torch.ones(3), torch.tensor([2.0, 2.0, 5.0]))(1.0) == pytest.approx(2.0)


def test_a_midway_threshold_is_as_far_from_both_scores():
    assert midway_threshold(6.0, SCORES) == pytest.approx(4.5)
    assert midway_threshold(4.0, SCORES) == pytest.approx(3.5)
    assert midway_threshold(0.5, SCORES) == pytest.approx(0.5)  # nothing is below
    assert midway_threshold(float("nan"), SCORES) != midway_threshold(float("nan"), SCORES)


def test_a_transferred_threshold_has_a_margin_on_both_sides():
    processor = PostProcessor()
    processor._image_threshold.fill_(6.0)  # the lowest score of a detected defect, as anomalib chooses it
    source = torch.cat([SCORES, torch.linspace(0, 10, 200)])
    image_map, pixel_map = ScoreMap(source, 2 * source), ScoreMap(source, source)
    transferred = transfer_thresholds(processor, image_map, pixel_map, SCORES[:4])
    assert float(transferred._image_threshold) == pytest.approx(9.0, abs=0.1)
    assert float(processor._image_threshold) == 6.0


def test_calibrated_thresholds_have_the_best_f1():
    calibrated = calibrate_thresholds(PostProcessor(), detector, batches())
    best = max(f1_score(LABELS, scores) for scores in ((level <= SCORES).int() for level in SCORES))
    labels = calibrated(InferenceBatch(pred_score=SCORES, anomaly_map=SCORES[:, None, None])).pred_label
    assert f1_score(LABELS, labels) == pytest.approx(best)
    assert float(calibrated.image_threshold) == pytest.approx(4.5)  # between 3 and 6, where rounding changes no label
    assert (float(calibrated.image_min), float(calibrated.image_max)) == pytest.approx((0.5, 7.0))
    # pixels: the defective rows have 4.5, 18 and 21, all others at most 7
    assert 4.5 <= float(calibrated.pixel_threshold) <= 18
    assert float(calibrated.pixel_max) == pytest.approx(21)


def test_without_a_defect_thresholds_cannot_be_calibrated():
    with pytest.raises(ValueError, match="normal and defective validation images, got 4 normal and 0 defective"):
        calibrate_thresholds(PostProcessor(), detector, batches()[:4])
