# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.models import SplatPose
from anomalib_pose.models.components.checkpoint_keys import RENAMED_KEYS, current_key
from anomalib_pose.models.localization import load_fitted
from sample_models import SIZE, TRAINING, make_fitted, save_checkpoint
from sample_scenes import make_toy

QUERY_POSES = view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4:6]
OLD_NAMES = {new: old for old, new in RENAMED_KEYS.items()}


def old_key(name: str) -> str:
    """Name of a tensor in the oldest version that has another name for it."""
    matches = [new for new in OLD_NAMES if name == new or name.startswith(f"{new}.")]
    if not matches:
        return name
    new = max(matches, key=len)
    return OLD_NAMES[new] + name.removeprefix(new)


def render_toy(poses: torch.Tensor) -> torch.Tensor:
    """Photographs of the toy on white (N, 3, H, W)."""
    cameras = (Camera.from_fov(pose, 0.7, SIZE, SIZE) for pose in poses)
    return torch.stack([make_toy().render(camera, torch.ones(3)).rgb.permute(2, 0, 1) for camera in cameras])


@pytest.fixture(scope="module")
def model() -> SplatPose:
    fitted = make_fitted()
    images = render_toy(TRAINING.camera_to_world).clamp(0, 1)
    fitted.model.fit(images, TRAINING, None, lambda *_: 30.0)
    return fitted


@pytest.fixture(scope="module")
def old_checkpoint(model, tmp_path_factory) -> Path:
    """A checkpoint of the model whose tensors have their old names."""
    path = save_checkpoint(model, tmp_path_factory.mktemp("old") / "model.ckpt")
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {old_key(name): tensor for name, tensor in content["state_dict"].items()}
    assert "model.bank.centre" in content["state_dict"]
    torch.save(content, path)
    return path


def test_a_checkpoint_with_old_names_gives_the_same_scores(model, old_checkpoint):
    loaded = load_fitted(old_checkpoint)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    queries = render_toy(QUERY_POSES).clamp(0, 1)
    queries[1, :, 28:36, 28:36] = 0
    expected, prediction = (one.model(queries.clone()) for one in (model, loaded))
    for expected_part, part in zip(expected, prediction, strict=True):
        torch.testing.assert_close(part, expected_part, rtol=0, atol=0)


def test_a_trainer_accepts_old_names(model, old_checkpoint, tmp_path):
    fresh = SplatPose(bank_spacing=12.0, rasterizer="cpu", sh_degree=0)
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.strategy.connect(fresh)
    trainer._checkpoint_connector.resume_start(old_checkpoint, weights_only=True)
    trainer._checkpoint_connector.restore_model()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_current_names_stay(model):
    for name in model.state_dict():
        assert current_key(name) == name
    assert current_key("model.bank.centre") == "model.bank.center"
    assert current_key("model.bank.centred") == "model.bank.centred"
