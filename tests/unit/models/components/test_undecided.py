# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
import torch
from anomalib.post_processing import PostProcessor

from anomalib_pose.data.posed.dataclasses import PoseBatch
from anomalib_pose.models import SplatPose
from sample_models import SIZE, TRAINING, make_fitted
from sample_scenes import make_toy


@pytest.fixture(scope="module")
def fitted() -> SplatPose:
    model = make_fitted(memory_patches=0, surface_views=0)
    limits = {"_image_threshold": 3.0, "_pixel_threshold": 3.0, "image_min": 0.0, "image_max": 10.0}
    for name, value in {**limits, "pixel_min": 0.0, "pixel_max": 10.0}.items():
        getattr(model.post_processor, name).fill_(value)
    return model


def photograph(index: int = 5) -> torch.Tensor:
    output = make_toy().render(TRAINING[index], torch.ones(3))
    return output.rgb.permute(2, 0, 1).clamp(0, 1)


def with_pixel(value: float) -> torch.Tensor:
    image = photograph()
    image[0, 30, 30] = value
    return image


WITHOUT_VERDICT = {
    "black": torch.zeros(3, SIZE, SIZE),
    "white": torch.ones(3, SIZE, SIZE),
    "NaN pixel": with_pixel(float("nan")),
    "infinite pixel": with_pixel(float("inf")),
}


@pytest.mark.parametrize("name", WITHOUT_VERDICT)
def test_a_query_without_content_is_anomalous_with_confidence_zero(fitted, name, caplog):
    batch = PoseBatch(image=torch.stack([WITHOUT_VERDICT[name], photograph()]), image_path=["empty.png", "good.png"])
    with caplog.at_level(logging.WARNING):
        predicted = fitted.predict_step(batch)
    fitted.post_processor.post_process_batch(predicted)
    assert predicted.pose_confidence[0] == 0
    assert predicted.pose_confidence[1] > 0.8
    assert predicted.pred_label.tolist() == [True, False]
    assert predicted.pred_score[0] == 1
    assert predicted.anomaly_map.isfinite().all()
    assert "empty.png" in caplog.text
    assert "good.png" not in caplog.text


@pytest.mark.parametrize("name", WITHOUT_VERDICT)
def test_inferencers_get_the_same_verdict(fitted, name):
    prediction = fitted(torch.stack([WITHOUT_VERDICT[name], photograph()]))
    assert prediction.pred_label.tolist() == [True, False]


def test_a_query_whose_foreground_is_empty_is_anomalous(fitted):
    batch = PoseBatch(image=photograph()[None], foreground=torch.zeros(1, SIZE, SIZE), image_path=["empty.png"])
    predicted = fitted.test_step(batch)
    assert predicted.pose_confidence.tolist() == [0.0]
    assert predicted.pred_score.item() >= 13.0  # the threshold plus the range, which normalizes to 1


def test_a_validation_keeps_the_score_so_that_thresholds_do_not_move(fitted):
    batch = PoseBatch(image=WITHOUT_VERDICT["black"][None], image_path=["empty.png"])
    assert fitted.validation_step(batch).pred_score.item() < 13.0


def test_without_thresholds_a_query_without_content_is_anomalous_too():
    model = make_fitted(memory_patches=0, surface_views=0, post_processor=PostProcessor(enable_normalization=False))
    prediction = model(torch.zeros(1, 3, SIZE, SIZE))
    assert prediction.pred_label.tolist() == [True]
