# SPDX-License-Identifier: Apache-2.0
"""A test takes the pose estimates of a validation on the same queries and the same fitted model, and no others."""

import copy
import io

import pytest
import torch

from anomalib_pose.data import PoseBatch
from anomalib_pose.models.components import pose_cache
from anomalib_pose.models.components.pose_cache import PoseCache
from sample_models import SIZE, TRAINING, make_fitted
from sample_scenes import make_toy


@pytest.fixture(scope="module")
def fitted():
    return make_fitted(starts=1)


@pytest.fixture
def model(fitted):
    return copy.deepcopy(fitted)


@pytest.fixture
def searches(model, monkeypatch) -> list[int]:
    """One element for each search of the estimator."""
    calls: list[int] = []
    forward = type(model.model.estimator).forward

    def counted(self, *arguments):
        calls.append(1)
        return forward(self, *arguments)

    monkeypatch.setattr(type(model.model.estimator), "forward", counted)
    return calls


def queries(number: int = 2, **changes) -> PoseBatch:
    cameras = TRAINING[torch.arange(number) * 7]
    images = make_toy().render(cameras, torch.ones(3)).rgb.permute(0, 3, 1, 2).clamp(0, 1)
    batch = PoseBatch(
        image=images, intrinsics=cameras.K.clone(), gt_label=torch.zeros(number).bool(), image_path=number * ["a.png"]
    )
    batch.update(**changes)
    return batch


def outputs(batch: PoseBatch) -> list[torch.Tensor]:
    return [batch.pred_score, batch.anomaly_map, batch.estimated_camera_to_world, batch.pose_confidence]


def test_a_test_equals_a_test_without_a_validation_bit_by_bit(model, searches):
    with torch.no_grad():
        model.validation_step(queries())
    assert len(searches) == 2
    with torch.inference_mode():
        cached = model.test_step(queries())
        assert len(searches) == 2
        model._poses = PoseCache()
        searched = model.test_step(queries())
    assert len(searches) == 4
    for first, second in zip(outputs(cached), outputs(searched), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_seconds_per_query_include_the_search_that_is_not_repeated(model):
    model.validation_step(queries())
    validation = model._seconds
    model.on_test_start()
    model.test_step(queries())
    assert model._seconds > model._poses.reused_seconds > 0
    assert model._poses.reused_seconds < validation


CHANGES = {
    "nothing": (0, lambda model: None),
    "equal checkpoint": (0, lambda model: model.load_state_dict(copy.deepcopy(model.state_dict()))),
    "other checkpoint": (2, lambda model: model.load_state_dict(changed_state(model))),
    "other scene": (2, lambda model: model.model.scene.set_raw(dimmed(model.model.scene.raw))),
    "tensor in place": (2, lambda model: model.model.bank.thumbnails.mul_(0.5)),
    "other bank": (2, lambda model: model.model.bank.build(model.model.rendered, TRAINING[::2])),
    "calibration": (2, lambda model: model.model.estimator.calibrate(torch.tensor([0.15]))),
    "starts": (2, lambda model: setattr(model.model.estimator, "starts", 2)),
    "rolls": (2, lambda model: setattr(model.model.bank, "rolls", 2)),
    "refiner": (
        2,
        lambda model: setattr(model.model.estimator, "refiner", copy.deepcopy(model.model.estimator.refiner)),
    ),
}


def changed_state(model) -> dict[str, torch.Tensor]:
    state = copy.deepcopy(model.state_dict())
    state["model.psnr"] = torch.tensor(1.0)
    return state


def dimmed(raw: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**raw, "sh": raw["sh"] * 0.9}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_searches_again(model, searches, change):
    count, apply = CHANGES[change]
    model.validation_step(queries())
    searches.clear()
    apply(model)
    model.test_step(queries())
    assert len(searches) == count


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"image": 0.999 * queries().image}, 2),
        ({"intrinsics": 1.01 * queries().intrinsics}, 2),
        ({"foreground": torch.ones(2, SIZE, SIZE)}, 2),
    ],
)
def test_a_changed_query_is_searched(model, searches, changes, count):
    model.validation_step(queries())
    searches.clear()
    model.test_step(queries(**changes))
    assert len(searches) == count


def test_the_cache_is_bounded(model, searches, monkeypatch):
    monkeypatch.setattr(pose_cache, "_CAPACITY", 3)
    model.validation_step(queries(4))
    assert len(model._poses) == 3
    searches.clear()
    model.test_step(queries(1))  # the oldest query
    assert len(searches) == 1


def test_copies_and_exports_are_empty_and_other_calls_search(model, searches):
    model.validation_step(queries())
    assert len(copy.deepcopy(model)._poses) == 0
    file = io.BytesIO()
    torch.save(model._poses, file)
    assert file.tell() < 2000
    searches.clear()
    model.model.estimate(queries().image[0], queries().intrinsics[0])
    assert len(searches) == 1
    assert model.model.pose_cache is None


def test_an_error_of_a_search_leaves_no_cache_behind(model, monkeypatch):
    def fail(*_):
        msg = "no pose"
        raise ValueError(msg)

    monkeypatch.setattr(type(model.model.estimator), "forward", fail)
    with pytest.raises(ValueError, match="no pose"):
        model.validation_step(queries())
    assert model.model.pose_cache is None
    assert len(model._poses) == 0
