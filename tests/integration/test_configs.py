# SPDX-License-Identifier: Apache-2.0
"""Every configuration says its command in line 1, and that command runs."""

import re
import shlex
from pathlib import Path

import pytest
from anomalib.cli import AnomalibCLI

import anomalib_pose
from anomalib_pose.data.sample.mad import write_mad

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

anomalib_pose.register()

# What makes a run small, and does without weights that have to be downloaded.
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


def command_of(config: Path) -> list[str]:
    first = config.read_text().splitlines()[0]
    assert first.startswith("# anomalib train --config configs/"), f"{config} should begin with its command"
    return shlex.split(first[2:])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_the_command_of_a_configuration_runs(config, mad_root, tmp_path, monkeypatch):
    command = command_of(config)
    assert ROOT / command[3] == config
    # The config is found from any directory; root and category are those of the small data set.
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--config", str(config)]
    mad = bool(re.search(r"class_path: anomalib_pose\.MAD", config.read_text()))
    arguments += ["--data.init_args.root", str(mad_root if mad else mad_root / "toy")]
    if mad:
        arguments += ["--data.init_args.category", "toy"]
    arguments += ["--data.init_args.image_size", "32", "--data.init_args.num_workers", "0"]
    for name, value in QUICK_MODEL.items():
        arguments += [f"--model.init_args.{name}", str(value)]
    if "recipe: paper" not in config.read_text():
        arguments += ["--model.init_args.max_gaussians", "50"]
    AnomalibCLI(args=[*arguments, *QUICK_TRAINER])
    assert list(tmp_path.rglob("model.ckpt"))
    assert list(tmp_path.rglob("images/**/*.png"))


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_subcommands_with_short_names(subcommand, mad_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "SplatPose", "--data", "MAD", "--data.root", str(mad_root), "--data.category", "toy"]
    arguments += ["--data.num_workers", "0", "--model.max_gaussians", "50"]
    for name, value in QUICK_MODEL.items():
        arguments += [f"--model.{name}", str(value)]
    AnomalibCLI(args=["fit", *arguments, *QUICK_TRAINER])
    (checkpoint,) = tmp_path.rglob("v0/**/model.ckpt")
    if subcommand != "fit":
        AnomalibCLI(args=[subcommand, *arguments, "--ckpt_path", str(checkpoint), *QUICK_TRAINER])
    if subcommand == "test":
        assert list(tmp_path.rglob("images/**/*.png"))


def test_export_by_the_command_line(mad_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--model",
        "SplatPose",
        "--model.steps",
        "5",
        "--model.max_gaussians",
        "50",
        "--model.bank_spacing",
        "40",
    ]
    data = ["--data", "MAD", "--data.root", str(mad_root), "--data.category", "toy", "--data.num_workers", "0"]
    AnomalibCLI(args=["fit", *arguments, *data, *QUICK_TRAINER])
    (checkpoint,) = tmp_path.rglob("v0/**/model.ckpt")
    AnomalibCLI(args=["export", *arguments, "--ckpt_path", str(checkpoint), "--export_type", "torch"])
    assert list(tmp_path.rglob("model.pt"))
