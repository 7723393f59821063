# SPDX-License-Identifier: Apache-2.0
"""Line 1 of every configuration is its command, and the command runs."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.deploy import OpenVINOInferencer

import anomalib_pose
from anomalib_pose.sample_data import write_clouds, write_mad, write_mip
from anomalib_pose.sample_data.chairs import write_chairs
from small_clip import write_small_clip

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "configs" / "benchmark" / "mad.yaml"
CONFIGS = sorted(set((ROOT / "configs").rglob("*.yaml")) - {BENCHMARK})

anomalib_pose.register()

# Arguments of a small run that downloads no weights.
QUICK_MODEL = {
    "steps": 5,
    "starts": 1,
    "bank_spacing": 40.0,
    "refiner_steps": 2,
    "comparator": "calibrated",
    "backbone": "",
}
QUICK_TRAINER = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def mad_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "MAD"
    write_mad(root, "toy", 0, 32, views=24, test_good=2, test_per_defect=1, progress=False)
    return root


@pytest.fixture(scope="module")
def mip_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "MIP"
    write_mip(root, "toy", 0, 32, views=24, lights=2, test_good=1, test_per_defect=1, progress=False)
    return root


@pytest.fixture(scope="module")
def chairs_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "chairs"
    write_chairs(root, shapes=3, queries=2, size=128, views=5, progress=False)
    return root


@pytest.fixture(scope="module")
def clouds_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "clouds"
    write_clouds(root, ["ring", "peg"], 0, 64, train=0, test_good=2, test_per_defect=1, progress=False)
    network = timm.create_model("test_resnet", pretrained=False)
    torch.save(network.state_dict(), root / "random.pth")
    write_small_clip(root)
    return root


def command_of(config: Path) -> list[str]:
    first = config.read_text().splitlines()[0]
    assert first.startswith("# anomalib train --config configs/"), f"{config} should begin with its command"
    return shlex.split(first[2:])


# The fast tests run the same model with the same settings on the other data set.
REPEATED = {"omniposead_mip.yaml", "piad_mad.yaml", "paper/omniposead_mip.yaml", "paper/piad_mad.yaml"}
# Other tests cover the parts of these trainings, or other configurations run them.
REPEATED |= {"paper/looking3d_brokenchairs.yaml", "paper/piad_mip.yaml", "paper/splatpose_mad.yaml"}
REPEATED |= {"omniposead_mad.yaml", "looking3d_brokenchairs.yaml", "looking3d_sample.yaml", "splatpose_mad.yaml"}
REPEATED |= {"paper/omniposead_mad.yaml", "paper/pointad_mvtec3d.yaml"}
CHAIRS = ["--data.init_args.train_views", "2", "--data.init_args.eval_views", "2", "--trainer.max_epochs", "1"]


def configurations() -> list:
    """List all configurations by name; those that repeat another one are slow tests."""
    names = [str(config.relative_to(ROOT / "configs")) for config in CONFIGS]
    return [
        pytest.param(
            config,
            id=name,
            marks=[pytest.mark.slow] if name in REPEATED else [],
        )
        for config, name in zip(CONFIGS, names, strict=True)
    ]


@pytest.mark.parametrize("config", configurations())
def test_command_of_the_configuration_runs(config, request, tmp_path, monkeypatch):
    command = command_of(config)
    assert ROOT / command[3] == config
    # The test runs in another folder, with root and category of the small data set.
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--config", str(config)]
    text = config.read_text()
    data = re.findall(r"class_path: anomalib_pose\.(\w+)", text)[1]
    fixtures = {"MAD": "mad_root", "MIP": "mip_root", "PosedFolder": "mad_root", "BrokenChairs": "chairs_root"}
    fixtures["MVTec3DRendered"] = "clouds_root"
    root = request.getfixturevalue(fixtures[data])
    arguments += ["--data.init_args.root", str(root / "toy" if data == "PosedFolder" else root)]
    arguments += ["--data.init_args.num_workers", "0"]
    if data == "MVTec3DRendered":
        arguments += cloud_arguments(text, root)
    else:
        arguments += CHAIRS if data == "BrokenChairs" else scene_arguments(text, data)
    AnomalibCLI(args=[*arguments, *QUICK_TRAINER])
    assert list(tmp_path.rglob("model.ckpt"))
    assert list(tmp_path.rglob("images/**/*.png"))


def cloud_arguments(text: str, root: Path) -> list[str]:
    """List the arguments of a small run of PointAD."""
    arguments = ["--data.init_args.size", "48", "--data.init_args.category", "ring", "--trainer.max_epochs", "1"]
    if "scoring: mutual" in text:
        small = {"backbone": "test_resnet", "layers": "[1, 2]", "weights_path": str(root / "random.pth")}
        return arguments + [part for name, value in small.items() for part in (f"--model.init_args.{name}", value)]
    small = {"clip_model": str(root / "small.json"), "pretrained": "", "deep_sets": "2", "vv_blocks": "3"}
    arguments += [part for name, value in small.items() for part in (f"--model.init_args.{name}", value)]
    arguments += ["--data.init_args.cache_dir", "null", "--trainer.check_val_every_n_epoch", "1"]
    return [*arguments, "--data.init_args.train_category", "peg"]


def scene_arguments(text: str, data: str) -> list[str]:
    """List the arguments of a small run of a scene model.

    Args:
        text: configuration.
        data: name of its datamodule.
    """
    arguments = ["--data.init_args.image_size", "32"]
    if data != "PosedFolder":
        arguments += ["--data.init_args.category", "toy"]
    for name, value in QUICK_MODEL.items():
        arguments += [f"--model.init_args.{name}", str(value)]
    if "OmniposeAD" in text:
        # The paper's networks take seconds per view without a GPU, and a run renders dozens of views.
        arguments += ["--model.init_args.field", "grid"]
    elif "recipe: paper" not in text:
        arguments += ["--model.init_args.max_gaussians", "50"]
    return arguments


def quick_arguments(mad_root: Path) -> list[str]:
    """List the arguments of a small SplatPose on a small MAD, by their short names."""
    arguments = ["--model", "SplatPose", "--data", "MAD", "--data.root", str(mad_root), "--data.category", "toy"]
    arguments += ["--data.num_workers", "0", "--model.max_gaussians", "50"]
    for name, value in QUICK_MODEL.items():
        arguments += [f"--model.{name}", str(value)]
    return arguments


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_subcommands_accept_short_names(subcommand, mad_root, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = [] if subcommand == "fit" else ["--ckpt_path", str(fitted)]
    AnomalibCLI(args=[subcommand, *quick_arguments(mad_root), *checkpoint, *QUICK_TRAINER])
    assert bool(list(tmp_path.rglob("v0/**/model.ckpt"))) == (subcommand == "fit")
    if subcommand == "test":
        assert list(tmp_path.rglob("images/**/*.png"))


@pytest.mark.slow
def test_benchmark_runs_beside_patchcore(mad_root, tmp_path, monkeypatch):
    assert BENCHMARK.read_text().startswith(f"# anomalib benchmark --config {BENCHMARK.relative_to(ROOT)}\n")
    config = yaml.safe_load(BENCHMARK.read_text())
    splat_pose, patchcore = config["benchmark"]["model"]["grid"]
    splat_pose["init_args"] = {**QUICK_MODEL, "max_gaussians": 50}
    patchcore["init_args"] |= {"backbone": "resnet18", "layers": ["layer3"], "pre_trained": False}
    places = {"root": str(mad_root), "image_size": 32, "category": {"grid": ["toy"]}, "num_workers": 0}
    config["benchmark"]["data"]["init_args"] |= places
    quick = tmp_path / "benchmark.yaml"
    quick.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    AnomalibCLI(args=["benchmark", "--config", str(quick)])
    (table,) = tmp_path.rglob("results.csv")
    rows = list(csv.DictReader(table.open()))
    assert [row["model.class_path"] for row in rows] == ["SplatPose", "Patchcore"]
    assert all(0 <= float(row["image_AUROC"]) <= 1 for row in rows)
    assert [bool(row["pixel_AUPRO"]) for row in rows] == [True, False], "PatchCore has its own metrics"


@pytest.mark.parametrize(
    ("kind", "file"), [("torch", "model.pt"), pytest.param("openvino", "model.xml", marks=pytest.mark.slow)]
)
def test_command_line_exports(kind, file, fitted, tmp_path, monkeypatch):
    if kind != "torch":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    monkeypatch.chdir(tmp_path)
    small = json.dumps({"views": 12, "size": 64, "starts": 1, "neighbours": 1, "steps": [1, 1, 1]})
    arguments = ["export", "--model", "SplatPose", "--ckpt_path", str(fitted), "--export_type", kind]
    AnomalibCLI(args=[*arguments, *([] if kind == "torch" else ["--onnx_kwargs", small])])
    (written,) = tmp_path.rglob(file)
    if kind == "openvino":
        image = np.random.default_rng(0).random((50, 60, 3), dtype=np.float32)
        prediction = OpenVINOInferencer(written, device="CPU").predict(image)
        assert np.isfinite(prediction.pred_score).all()
        assert prediction.anomaly_map.shape[-2:] == (50, 60)
    assert not list(tmp_path.rglob(".export-*"))


@pytest.fixture(scope="module")
def fitted(mad_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    AnomalibCLI(args=["train", *quick_arguments(mad_root), "--default_root_dir", str(folder), *QUICK_TRAINER])
    return next(folder.rglob("v0/**/model.ckpt"))
