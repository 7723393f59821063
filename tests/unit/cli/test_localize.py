# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from anomalib_pose import cli
from anomalib_pose.geometry import Camera, view_sphere
from sample_models import SIZE, make_fitted, save_checkpoint
from sample_scenes import make_toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint and a photograph."""
    folder = tmp_path_factory.mktemp("localize")
    save_checkpoint(make_fitted(), folder / "model.ckpt")
    camera = Camera.from_fov(view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4], 0.7, SIZE, SIZE)
    pixels = (make_toy().render(camera, torch.ones(3)).rgb.clamp(0, 1) * 255).round().byte().numpy()
    (folder / "photos").mkdir()
    Image.fromarray(pixels).save(folder / "photos" / "a.png")
    return folder


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", *map(str, arguments)])
    cli.main()


def test_help_is_light() -> None:
    code = """
import sys
from anomalib_pose.cli import main
sys.argv = ["anomalib-pose", "localize", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "anomalib", "lightning", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    shown = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert "--ckpt_path" in shown.stdout


def test_localize_writes_cameras(monkeypatch, folder, tmp_path):
    output = tmp_path / "poses.json"
    run(monkeypatch, "localize", "--model", "SplatPose", "--ckpt_path", folder / "model.ckpt",
        "--data", folder / "photos", "--output", output, "--intrinsics", 90, 90, 32, 32, "--rolls", 2)  # fmt: skip
    (one,) = json.loads(output.read_text())["images"]
    assert one["K"] == [[90.0, 0.0, 32.0], [0.0, 90.0, 32.0], [0.0, 0.0, 1.0]]
    assert one["confidence"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "none.ckpt", "--data", "photos"], "none.ckpt"),
        (["--ckpt_path", "model.ckpt", "--data", "none"], "There are no photographs at none"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--masks", "none"], "mask of every photograph"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--model", "PIAD"], "says that it is of SplatPose"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--rolls", "0"], "rolls is a number of turns"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--matcher", "aliked"], "needs matcher_weights"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, folder, capsys, arguments, message):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "localize", *arguments)
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("anomalib-pose localize: error:")
    assert "Traceback" not in told
    assert not (folder / "poses.json").exists()


def test_arguments_are_checked_before_anything_is_loaded(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "localize", "--data", "photos")
    assert end.value.code == 2
    assert "--ckpt_path" in capsys.readouterr().err


def test_other_commands_are_anomalib_s(monkeypatch):
    called = []
    monkeypatch.setattr("anomalib.cli.cli.main", lambda: called.append(list(sys.argv)))
    run(monkeypatch, "train", "--model", "SplatPose")
    assert called == [["anomalib-pose", "train", "--model", "SplatPose"]]
