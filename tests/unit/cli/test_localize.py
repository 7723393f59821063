# SPDX-License-Identifier: Apache-2.0
"""Cameras of photographs are written whole, or a mistake is one line."""

import json
from typing import get_args

import pytest
import torch
from PIL import Image

from anomalib_pose.cli import localize
from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.pose.feature_matchers import MatcherName
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


def test_localize_writes_cameras(run_command, folder, tmp_path):
    output = tmp_path / "poses.json"
    run_command("localize", "--model", "SplatPose", "--ckpt_path", folder / "model.ckpt",
        "--data", folder / "photos", "--output", output, "--intrinsics", 90, 90, 32, 32, "--rolls", 2)  # fmt: skip
    (one,) = json.loads(output.read_text())["images"]
    assert one["K"] == [[90.0, 0.0, 32.0], [0.0, 90.0, 32.0], [0.0, 0.0, 1.0]]
    assert one["confidence"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt_path", "none.ckpt", "--data", "photos"], "none.ckpt"),
        (["--ckpt_path", "model.ckpt", "--data", "none"], "There are no photographs at none"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--masks", "none"], "one mask per photograph"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--model", "PIAD"], "belongs to SplatPose"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--rolls", "0"], "rolls should be a number"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--matcher", "aliked"], "needs matcher_weights"),
    ],
)
def test_a_wrong_file_or_value_is_one_line(monkeypatch, folder, command_error, arguments, message):
    monkeypatch.chdir(folder)
    assert message in command_error("localize", *arguments)
    assert not (folder / "poses.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "photos"], "--ckpt_path"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--matcher", "sift"], "aliked"),
        (["--ckpt_path", "model.ckpt", "--data", "photos", "--model", "Padim"], "SplatPose"),
    ],
)
def test_arguments_are_checked_before_a_file_is_read(run_command, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        run_command("localize", *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_matchers_of_the_command_are_those_of_the_library():
    assert tuple(filter(None, get_args(MatcherName))) == localize._MATCHERS
