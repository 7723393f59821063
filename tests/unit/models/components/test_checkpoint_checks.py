# SPDX-License-Identifier: Apache-2.0
"""A wrong file, model, value or setting of a checkpoint is named wherever a checkpoint is loaded."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from anomalib.engine import Engine
from anomalib.models import Padim
from lightning import Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch.utils.data import DataLoader

import anomalib_pose
from anomalib_pose.data import PoseBatch, PoseItem
from anomalib_pose.models import PIAD, Looking3D, OmniposeAD, PointAD, SplatPose
from anomalib_pose.models.components.run_checks import CheckedCheckpointIO
from anomalib_pose.models.localization import load_fitted
from sample_models import make_fitted, save_checkpoint

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


def loader() -> DataLoader:
    items = [PoseItem(image=torch.ones(3, 64, 64), camera_to_world=torch.eye(4), intrinsics=torch.eye(3))]
    return DataLoader(items, collate_fn=PoseBatch.collate)


def engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, logger=False, accelerator="cpu", devices=1, enable_progress_bar=False)


def resume(model: Any, path: Path | None) -> None:
    engine(Path.cwd()).fit(model, loader(), loader(), ckpt_path=path)


ENTRIES: dict[str, Callable[[Any, Path], Any]] = {
    "test": lambda model, path: engine(Path.cwd()).test(model, loader(), ckpt_path=path),
    "validate": lambda model, path: engine(Path.cwd()).validate(model, loader(), ckpt_path=path),
    "predict": lambda model, path: engine(Path.cwd()).predict(model, loader(), ckpt_path=path),
    "resume": resume,
    "export": lambda model, path: engine(Path.cwd()).export(model, "torch", Path.cwd(), ckpt_path=path),
    "load_from_checkpoint": lambda model, path: type(model).load_from_checkpoint(path),
    "load_fitted": lambda model, path: load_fitted(path, type(model).__name__),
    "estimate_pose": lambda _, path: anomalib_pose.estimate_pose(path, torch.ones(3, 64, 64)),
}

RUNS = ("test", "validate", "predict", "resume")
READERS = ("test", "resume", "load_from_checkpoint", "estimate_pose")
"""One entry point for each function that reads a checkpoint file."""


@pytest.fixture(autouse=True)
def in_an_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return save_checkpoint(make_fitted(), tmp_path_factory.mktemp("fitted") / "model.ckpt")


def changed(path: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, target)
    return target


def refused(entry: str, model: Any, path: Path, kind: type[Exception] = ValueError) -> str:
    """Return the message with which an entry point refuses a checkpoint: one line, without advice to unpickle."""
    with pytest.raises(kind) as error:
        ENTRIES[entry](model, path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert "weights_only=False" not in message
    assert len(message) < 400
    return message


FILES = {
    "empty": (b"", "is empty"),
    "LFS pointer": (LFS, "git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html></html>", "is a web page"),
    "text": (b"weights", "is a text file"),
    "binary": (bytes(range(256)), "is of another format"),
    "truncated pickle": (b"\x80\x02}q\x00", "is an incomplete or damaged file"),
    "half": (None, "is incomplete"),
    "zip": (b"PK\x05\x06" + bytes(18), "is a zip archive that torch did not write"),
}


@pytest.mark.parametrize("entry", READERS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_named(entry, name, fitted, tmp_path):
    content, reason = FILES[name]
    path = tmp_path / "other.ckpt"
    path.write_bytes(fitted.read_bytes()[: fitted.stat().st_size // 2] if content is None else content)
    message = refused(entry, SplatPose(), path)
    assert "other.ckpt should hold a checkpoint" in message
    assert reason in message


@pytest.mark.parametrize("entry", READERS)
@pytest.mark.parametrize(
    "content", [{"a": torch.zeros(1)}, [1], {"state_dict": [1]}, {"state_dict": {"a": 1}}, torch.ones(1)]
)
def test_a_file_without_a_state_is_named(entry, content, tmp_path):
    torch.save(content, tmp_path / "other.ckpt")
    assert "has no state_dict" in refused(entry, SplatPose(), tmp_path / "other.ckpt")


@pytest.mark.parametrize("entry", READERS)
def test_a_bare_state_dict_is_named(entry, tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    message = refused(entry, SplatPose(), tmp_path / "other.ckpt")
    assert ("names no model" if entry == "estimate_pose" else "holds the tensors alone") in message


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", ["", "folder"])
def test_a_missing_file_is_named(entry, name, tmp_path):
    (tmp_path / "folder").mkdir()
    path = tmp_path / (name or "none.ckpt")
    assert str(path) in refused(entry, SplatPose(), path, FileNotFoundError)


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name != "estimate_pose"])
def test_the_checkpoint_of_another_model_is_named(entry, tmp_path):
    path = save_checkpoint(make_fitted(PIAD), tmp_path / "piad.ckpt")
    message = refused(entry, SplatPose(), path)
    assert "piad.ckpt" in message
    assert "PIAD" in message
    assert "SplatPose" in message


@pytest.mark.parametrize("model_class", [SplatPose, PIAD, OmniposeAD, Looking3D, PointAD])
@pytest.mark.parametrize("other", ["Padim", "Looking3D", "SplatPose"])
def test_every_model_refuses_a_foreign_checkpoint(model_class, other, tmp_path):
    if other == model_class.__name__:
        pytest.skip("the model's own checkpoint")
    make = {"Padim": lambda: Padim(pre_trained=False), "Looking3D": Looking3D, "SplatPose": SplatPose}[other]
    path = save_checkpoint(make(), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=rf"other\.ckpt is (a|no) checkpoint of .*{model_class.__name__}"):
        model_class.load_from_checkpoint(path)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scene_that_is_not_finite_is_refused(entry, value, fitted, tmp_path):
    def damage(checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"]["model.scene.means"].view(-1)[0] = value

    path = changed(fitted, tmp_path / "model.ckpt", damage)
    assert "NaN or infinite in 1 of" in refused(entry, SplatPose(), path)


@pytest.mark.parametrize("name", ["psnr", "thresholds"])
def test_values_that_are_unset_may_be_nan(name, fitted):
    state = torch.load(fitted, weights_only=True)["state_dict"]
    key = "model.psnr" if name == "psnr" else "post_processor._image_threshold"
    assert state[key].isnan()
    assert SplatPose.load_from_checkpoint(fitted).model.psnr.isnan()


@pytest.mark.parametrize("kind", ["torch", "onnx", "openvino"])
def test_a_model_without_checkpoint_is_not_exported(kind, tmp_path):
    with pytest.raises(ValueError, match=r"is not fitted.*: train it first, or give its checkpoint by --ckpt_path"):
        engine(tmp_path).export(SplatPose(), kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entry", ["test", "validate", "predict"])
@pytest.mark.parametrize("model_class", [SplatPose, PIAD, OmniposeAD])
def test_a_model_without_checkpoint_is_not_fitted(entry, model_class):
    expected = rf"The {model_class.__name__} is not fitted: train it first, or give its checkpoint by --ckpt_path\."
    with pytest.raises(ValueError, match=expected):
        ENTRIES[entry](model_class(), None)


@pytest.mark.parametrize("entry", ["test", "predict"])
def test_a_fitted_scene_that_is_not_finite_is_not_tested(entry):
    model = make_fitted()
    model.model.scene.means.data[0] = float("nan")
    with pytest.raises(ValueError, match="The SplatPose has values that are NaN or infinite"):
        ENTRIES[entry](model, None)


MISSING = {
    "backbone": ({"backbone": "resnet18"}, "--model.backbone resnet18"),
    "memory": ({"memory_patches": 0, "backbone": "resnet18"}, "--model.backbone resnet18 --model.memory_patches 0"),
    "nearby_views": ({"nearby_views": 0}, "--model.nearby_views 0"),
    "comparator": ({"comparator": "illumination"}, "--model.comparator illumination"),
}


@pytest.mark.parametrize("entry", ["test", "resume"])
@pytest.mark.parametrize("name", MISSING)
def test_missing_flags_are_named_where_the_state_does_not_fit(entry, name, tmp_path):
    settings, flags = MISSING[name]
    path = save_checkpoint(make_fitted(**settings), tmp_path / "model.ckpt")
    message = refused(entry, SplatPose(rasterizer="cpu", bank_spacing=12.0, sh_degree=0), path)
    assert "model.ckpt does not fit this SplatPose" in message
    assert flags in message


def test_a_state_of_another_version_is_named(fitted, tmp_path):
    path = changed(fitted, tmp_path / "model.ckpt", lambda checkpoint: checkpoint["state_dict"].pop("model.intrinsics"))
    with pytest.raises(ValueError, match=r"does not match this version of SplatPose, because 'model\.intrinsics' is"):
        SplatPose.load_from_checkpoint(path)


DEFAULTS = {
    "rolls": ({"rolls": 4}, {}, "--model.rolls 4"),
    "several": ({"rolls": 4, "starts": 7}, {}, "--model.starts 7 --model.rolls 4"),
    "refine_focal": ({"refine_focal": True}, {}, "--model.refine_focal true"),
    "fit alone": ({"steps": 7, "seed": 3, "holdout_every": 5}, {}, ""),
    "own choice": ({"rolls": 4}, {"rolls": 2}, ""),
    "same": ({"rolls": 4}, {"rolls": 4}, ""),
    "patches": ({"surface_views": 60}, {}, ""),
    "no patches": ({"surface_views": 0}, {}, "--model.surface_views 0"),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_settings_that_fall_back_to_defaults_are_named(name, tmp_path, caplog):
    saved, own, flags = DEFAULTS[name]
    path = save_checkpoint(make_fitted(**saved), tmp_path / "model.ckpt")
    model = SplatPose(rasterizer="cpu", sh_degree=0, **own)
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        Trainer(logger=False, accelerator="cpu", limit_test_batches=0, enable_progress_bar=False).test(
            model, loader(), ckpt_path=path, verbose=False
        )
    lines = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert len(lines) == bool(flags)
    assert all(line.endswith(f"give {flags}.") for line in lines)
    caplog.clear()
    SplatPose.load_from_checkpoint(path)
    assert "other settings" not in caplog.text


def test_thresholds_of_an_older_checkpoint_are_known_to_equal_a_score(fitted, tmp_path):
    assert SplatPose.load_from_checkpoint(fitted).post_processor.thresholds_are_midway
    old = changed(fitted, tmp_path / "old.ckpt", lambda checkpoint: checkpoint.pop("anomalib_pose_midway_thresholds"))
    loaded = SplatPose.load_from_checkpoint(old)
    assert not loaded.post_processor.thresholds_are_midway
    assert type(loaded.post_processor._image_threshold_metric).__name__ == "MidwayThreshold"
    assert SplatPose(post_processor=False).post_processor is None
    path = save_checkpoint(make_fitted(post_processor=False), tmp_path / "none.ckpt")
    assert SplatPose.load_from_checkpoint(path).post_processor is None


@pytest.mark.parametrize("model_class", [SplatPose, PIAD, OmniposeAD, Looking3D])
def test_every_model_places_thresholds_midway(model_class):
    assert type(model_class().post_processor._image_threshold_metric).__name__ == "MidwayThreshold"


def test_a_full_disk_is_named_by_the_file_that_does_not_fit(tmp_path, monkeypatch):
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/other")

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*model\.ckpt'"):
        CheckedCheckpointIO().save_checkpoint({}, tmp_path / "model.ckpt")


def test_the_folder_of_an_export_to_torch_is_checked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name another folder"):
        make_fitted().to_torch(tmp_path / "file")
