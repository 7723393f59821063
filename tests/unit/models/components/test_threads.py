# SPDX-License-Identifier: Apache-2.0
"""Fits and predictions do not depend on the number of threads."""

from collections.abc import Iterator

import pytest
import torch

from anomalib_pose.data.posed.dataclasses import PoseBatch
from anomalib_pose.models import OmniposeAD, SplatPose
from sample_models import TRAINING
from sample_scenes import make_toy


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def photographs() -> torch.Tensor:
    """The toy on white (C, 3, SIZE, SIZE)."""
    return make_toy().render(TRAINING, torch.ones(3)).rgb.permute(0, 3, 1, 2).clamp(0, 1).contiguous()


def fit_and_predict(model: SplatPose | OmniposeAD) -> dict[str, torch.Tensor]:
    """Fit a model, predict three queries, and return all buffers and predictions."""
    images = photographs()
    model.model.fit(images, TRAINING, None, model.fit_scene())
    query = images[4:7].clone()
    query[1, :, 25:32, 25:32] = 0.1
    prediction = model._step(PoseBatch(image=query))
    outputs = {name: getattr(prediction, name) for name in ("pred_score", "anomaly_map", "estimated_camera_to_world")}
    return {**model.model.state_dict(), **outputs}


SETTINGS = {"steps": 30, "bank_spacing": 20.0, "surface_views": 6, "memory_patches": 0}


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(
    "make_model",
    [
        pytest.param(lambda: SplatPose(max_gaussians=2000, rasterizer="cpu", **SETTINGS), id="splats"),
        pytest.param(lambda: OmniposeAD(**SETTINGS), id="grid", marks=pytest.mark.slow),
    ],
)
def test_one_and_three_threads_give_equal_bits(make_model, monkeypatch):
    monkeypatch.setattr(SplatPose, "shows_progress", False)
    monkeypatch.setattr(OmniposeAD, "shows_progress", False)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(fit_and_predict(make_model()))
        assert torch.get_num_threads() == threads
    first, second = results
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name].nan_to_num(7), second[name].nan_to_num(7))]
    assert different == []
