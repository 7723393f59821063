# SPDX-License-Identifier: Apache-2.0
"""One small fit of each paper's preset, with the paper's own field, refiner and comparator."""

from pathlib import Path

import pytest
import timm
import torch
from anomalib.cli import AnomalibCLI

import anomalib_pose
from anomalib_pose.models.omnipose_ad import lightning_model
from anomalib_pose.sample_data import write_clouds, write_mad, write_mip
from anomalib_pose.sample_data.chairs import write_chairs
from anomalib_pose.scene import mlp_scene
from small_clip import write_small_clip

PAPER = Path(__file__).resolve().parents[2] / "configs" / "paper"
QUICK = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
# The sizes alone are small: recipe, field, refiner and comparator are those of the preset.
SMALL_SCENE = {"steps": 4, "refiner_steps": 3, "bank_spacing": 60.0, "surface_views": 2}
SMALL_CHAIRS = {"train_views": 2, "eval_views": 2}
SMALL_CLOUDS = {"size": 48, "category": "ring", "train_category": "peg", "cache_dir": "null"}

anomalib_pose.register()


def options(section: str, values: dict) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{section}.init_args.{name}", str(value))]


@pytest.fixture(scope="module")
def random_network(tmp_path_factory) -> dict[str, str]:
    """A small network with random weights in the place of EfficientNet-B4."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet", pretrained=False).state_dict(), path)
    return {"backbone": "test_efficientnet", "weights_path": str(path)}


def train(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict:
    """Run ``anomalib train`` with a preset and return the checkpoint's hyper-parameters."""
    monkeypatch.chdir(tmp_path)
    command = ["train", "--config", str(PAPER / preset), "--data.init_args.num_workers", "0", *arguments, *QUICK]
    AnomalibCLI(args=command)
    (checkpoint,) = tmp_path.rglob("v0/**/model.ckpt")
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["hyper_parameters"]


@pytest.mark.parametrize(
    ("preset", "size", "settings"),
    [
        ("splatpose_mad.yaml", 32, {"recipe": "paper", "refiner": "adam", "comparator": "paper"}),
        ("omniposead_mad.yaml", 16, {"field": "mlp", "refiner": "inerf", "comparator": "paper"}),
        ("piad_mip.yaml", 32, {"recipe": "paper", "refiner": "reflectance", "comparator": "product"}),
    ],
)
def test_a_scene_model_trains_with_its_papers_preset(preset, size, settings, random_network, tmp_path, monkeypatch):
    root = tmp_path / "data"
    sizes = {"views": 6, "test_good": 1, "test_per_defect": 1, "progress": False}
    if "mip" in preset:
        write_mip(root, "toy", 0, size, lights=2, **sizes)
    else:
        write_mad(root, "toy", 0, size, **sizes)
    data = options("data", {"root": root, "category": "toy", "image_size": size})
    model = options("model", SMALL_SCENE | random_network)
    # NeRF's networks keep their layers; width and samples are small.
    monkeypatch.setattr(mlp_scene, "_WIDTH", 16)
    monkeypatch.setattr(lightning_model, "make_field", lambda _: mlp_scene.MlpScene(samples=8, fine_samples=8))
    hyper_parameters = train(preset, tmp_path, monkeypatch, *data, *model)
    assert {name: hyper_parameters[name] for name in settings} == settings


def test_looking3d_trains_with_its_papers_preset(tmp_path, monkeypatch):
    root = write_chairs(tmp_path / "data", shapes=3, queries=2, size=128, views=5, progress=False)
    data = options("data", {"root": root, **SMALL_CHAIRS, "train_batch_size": 2})
    hyper_parameters = train(
        "looking3d_brokenchairs.yaml",
        tmp_path,
        monkeypatch,
        *data,
        *options("model", {"image_size": 128}),
        "--trainer.max_epochs",
        "1",
    )
    assert hyper_parameters["schedule"] == "step"
    assert hyper_parameters["two_steps"]


def test_pointad_trains_with_its_papers_preset(tmp_path, monkeypatch):
    root = tmp_path / "data"
    write_clouds(root, ["ring", "peg"], 0, 64, train=0, test_good=1, test_per_defect=1, progress=False)
    write_small_clip(root)
    model = options("model", {"clip_model": root / "small.json", "pretrained": "", "deep_sets": 2, "vv_blocks": 3})
    once = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    data = options("data", {"root": root, **SMALL_CLOUDS})
    hyper_parameters = train("pointad_mvtec3d.yaml", tmp_path, monkeypatch, *data, *model, *once)
    assert hyper_parameters["scoring"] == "prompts"
