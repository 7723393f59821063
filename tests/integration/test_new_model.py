# SPDX-License-Identifier: Apache-2.0
"""A new scene model needs a class built from the shared mixin and one line of the registry."""

import warnings
from pathlib import Path

import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.engine import Engine

import anomalib_pose
from anomalib_pose import registry
from anomalib_pose.data import MAD
from anomalib_pose.models import localization
from anomalib_pose.sample_data import write_mad
from toy_model import ToySplat

TOY = registry.RegisteredModel("ToySplat", "toy_model", is_scene_model=True)
SMALL = {"budget": 60, "steps": 5, "bank_spacing": 40.0}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "MODELS", (*registry.MODELS, TOY))


def test_new_scene_model_fits_predicts_reloads_and_localizes(registered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mad(tmp_path, "toy", 0, 32, views=24, test_good=1, test_per_defect=1, progress=False)
    data = {"root": str(tmp_path), "category": "toy", "num_workers": 0}
    arguments = ["train", "--model", "ToySplat", "--data", "MAD", "--trainer.accelerator", "cpu"]
    arguments += [part for name, value in SMALL.items() for part in (f"--model.{name}", str(value))]
    arguments += [part for name, value in data.items() for part in (f"--data.{name}", str(value))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AnomalibCLI(args=[*arguments, "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"])
    needless = ("optimizer", "on_before_batch_transfer", "treespec")
    assert not [warning for warning in caught if any(word in str(warning.message) for word in needless)]
    checkpoint = next(Path(tmp_path).rglob("model.ckpt"))

    model = ToySplat.load_from_checkpoint(checkpoint, map_location="cpu")
    assert {name: model.hparams[name] for name in (*SMALL, "starts", "rolls")} == {**SMALL, "starts": 1, "rolls": 1}
    engine = Engine(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_progress_bar=False)
    batches = engine.predict(model, datamodule=MAD(**data))
    assert all(torch.isfinite(batch.pred_score).all() for batch in batches)

    image = tmp_path / "toy" / "test" / "good" / "0.png"
    (first, *_) = (batch for batch in batches if batch.image_path[0] == str(image))
    estimate = anomalib_pose.estimate_pose(checkpoint, image)
    torch.testing.assert_close(estimate.camera.camera_to_world, first.estimated_camera_to_world[0], rtol=0, atol=1e-5)
    assert type(localization.load_fitted(checkpoint, "ToySplat")) is ToySplat
    assert anomalib_pose.models.ToySplat is ToySplat


def test_checkpoint_of_an_unregistered_model_is_refused(tmp_path):
    torch.save({"state_dict": {}, "anomalib_pose_model": "ToySplat"}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="should be a checkpoint of one of OmniposeAD, PIAD, SplatPose"):
        anomalib_pose.estimate_pose(tmp_path / "model.ckpt", tmp_path / "0.png")
