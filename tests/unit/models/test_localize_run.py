# SPDX-License-Identifier: Apache-2.0
"""Localization of folders: photographs that fail, interruptions, repeated commands, and wrong outputs."""

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from anomalib_pose.data.posed.query_format import QueryFormat
from anomalib_pose.geometry import Camera
from anomalib_pose.models import localize_run
from anomalib_pose.models.localize_run import localize
from anomalib_pose.pose import PoseEstimate
from sample_models import SIZE, make_fitted


@pytest.fixture(scope="module")
def model():
    return make_fitted()


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (SIZE, SIZE), (40 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def searched(monkeypatch) -> list[str]:
    """Names of the photographs that were searched, with a search that takes no time."""
    names: list[str] = []

    def search(model, path, intrinsics, mask):
        del model, intrinsics, mask
        names.append(path.name)
        with Image.open(path) as image:
            image.load()
        return PoseEstimate(Camera.from_fov(torch.eye(4), 0.7, SIZE, SIZE), float("nan"), 0.9, True, 1)

    monkeypatch.setattr(localize_run, "estimate_photograph", search)
    return names


def entries(path: Path) -> list[dict]:
    def refuse(word):
        raise AssertionError(word)

    return json.loads(path.read_text(), parse_constant=refuse)["images"]


def test_photographs_that_fail_have_an_error_and_the_others_a_camera(model, photos, searched, tmp_path, caplog):
    (photos / "1.png").write_text("no image")
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:60])
    estimates = localize(model, photos, tmp_path / "poses.json", progress=False)
    assert [Path(estimate.file).name for estimate in estimates] == ["0.png", "2.png", "4.png"]
    written = entries(tmp_path / "poses.json")
    assert ["error" in entry for entry in written] == [False, True, False, True, False]
    assert all("1.png" in written[1][key] for key in ("file", "error"))
    assert written[0]["residual"] is None  # NaN is no JSON
    assert "2 of 5 photographs could not be localized" in caplog.text


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize("distortion", [(), (0.1, 0.0, 0.0, 0.0, 0.0)])
def test_the_file_says_that_distortion_was_removed(photos, tmp_path, distortion):
    distorted = make_fitted()
    camera = replace(distorted.model.query_format.cameras[0], distortion=distortion)
    distorted.model.query_cameras.store(QueryFormat((SIZE, SIZE), (camera,)))
    localize(distorted, photos, tmp_path / "poses.json", progress=False)
    convention = json.loads((tmp_path / "poses.json").read_text())["convention"]
    assert ("lens distortion is removed" in convention) == bool(distortion)


@pytest.mark.usefixtures("searched")
def test_photographs_in_subfolders_are_reported(model, photos, tmp_path, caplog):
    (photos / "more").mkdir()
    (photos / "0.png").rename(photos / "more" / "0.png")
    localize(model, photos, tmp_path / "poses.json", progress=False)
    assert re.search("not searched for photographs: more", caplog.text)


@pytest.mark.parametrize(
    "fault", [ValueError("bad"), OSError("bad"), RuntimeError("bad"), MemoryError(), KeyError("x")]
)
def test_no_fault_of_one_photograph_ends_the_run(model, photos, monkeypatch, tmp_path, fault):
    def search(*args):
        raise fault

    monkeypatch.setattr(localize_run, "estimate_photograph", search)
    with pytest.raises(ValueError, match=r"None of 5 photographs could be localized. The first reason: .*0\.png"):
        localize(model, photos, tmp_path / "poses.json", progress=False)
    assert len(entries(tmp_path / "poses.json")) == 5


def test_an_interruption_leaves_a_valid_file_and_the_same_command_continues(
    model, photos, searched, monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO")
    output, search = tmp_path / "poses.json", localize_run.estimate_photograph

    def interrupted(model, path, intrinsics, mask):
        if path.name == "3.png":
            raise KeyboardInterrupt
        assert not searched or len(entries(output)) == len(searched)  # written after every photograph
        return search(model, path, intrinsics, mask)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(localize_run, "estimate_photograph", interrupted)
        localize(model, photos, output, progress=False)
    first = entries(output)
    assert len(first) == 3
    assert "has 3 of 5 photographs, and the same command continues" in caplog.text
    searched.clear()
    localize(model, photos, output, progress=False)
    assert searched == ["3.png", "4.png"]
    assert entries(output)[:3] == first
    assert "3 of 5 photographs were already in" in caplog.text


def test_a_second_interruption_keeps_what_the_first_run_has_searched(model, photos, searched, monkeypatch, tmp_path):
    output, search = tmp_path / "poses.json", localize_run.estimate_photograph
    localize(model, photos, output, progress=False)
    for name in ("0.png", "1.png"):
        Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(photos / name)

    def killed(model, path, intrinsics, mask):
        if path.name == "1.png":
            raise SystemExit
        return search(model, path, intrinsics, mask)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(localize_run, "estimate_photograph", killed)
        localize(model, photos, output, progress=False)
    assert [Path(entry["file"]).name for entry in entries(output)] == ["0.png", "2.png", "3.png", "4.png"]
    searched.clear()
    localize(model, photos, output, progress=False)
    assert searched == ["1.png"]
    assert [Path(entry["file"]).name for entry in entries(output)] == [f"{number}.png" for number in range(5)]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("nothing", []),
        ("a photograph", ["2.png"]),
        ("a new photograph", ["5.png"]),
        ("a failed photograph", ["1.png"]),
        ("the intrinsics", ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        ("the settings", ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        ("the fitted object", ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        ("an empty output", ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        ("a damaged output", ["0.png", "1.png", "2.png", "3.png", "4.png"]),
    ],
)
def test_only_what_changed_is_searched_again(photos, searched, tmp_path, change, again):
    model, output, intrinsics = make_fitted(), tmp_path / "poses.json", None
    good = (photos / "1.png").read_bytes()
    if change == "a failed photograph":
        (photos / "1.png").write_text("no image")
    localize(model, photos, output, progress=False)
    searched.clear()
    if change == "a photograph":
        Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(photos / "2.png")
    elif change == "a new photograph":
        Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(photos / "5.png")
    elif change == "a failed photograph":
        (photos / "1.png").write_bytes(good)
    elif change == "the intrinsics":
        intrinsics = torch.eye(3)
    elif change == "the settings":
        model.hparams["starts"] = 5
    elif change == "the fitted object":
        model.model.bank.center += 1
    elif change == "an empty output":
        output.write_text("")
    elif change == "a damaged output":
        output.write_text(output.read_text()[:200])
    localize(model, photos, output, intrinsics=intrinsics, progress=False)
    assert searched == again
    assert not any("error" in entry for entry in entries(output))


@pytest.mark.parametrize("content", ['{"frames": []}', "[1, 2]", "photograph", "\x89PNG"])
def test_another_file_is_never_overwritten(model, photos, searched, tmp_path, content):
    output = tmp_path / "transforms.json"
    output.write_text(content)
    with pytest.raises(ValueError, match=r"transforms\.json exists and holds no cameras of photographs"):
        localize(model, photos, output, progress=False)
    assert output.read_text() == content
    assert not searched


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("photos", "is a folder: add the name of a file"),
        ("photos/0.png/poses.json", "is a file: name another folder"),
        ("/proc/poses.json", "cannot be written"),
    ],
)
def test_the_output_is_checked_before_the_search(model, photos, searched, tmp_path, output, message):
    with pytest.raises(ValueError, match=message):
        localize(model, photos, tmp_path / output, progress=False)
    assert not searched


def test_a_full_disk_ends_the_run_with_one_sentence_and_the_earlier_results(
    model, photos, searched, monkeypatch, tmp_path
):
    output, write = tmp_path / "poses.json", localize_run.write_text

    def full(path, text):
        if text.count('"file"') == 3:
            raise OSError(28, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"poses\.json is full: free space and repeat"):
        patch.setattr(localize_run, "write_text", full)
        localize(model, photos, output, progress=False)
    assert len(entries(output)) == 2
    localize(model, photos, output, progress=False)
    assert searched == ["0.png", "1.png", "2.png", "2.png", "3.png", "4.png"]


def test_a_killed_run_leaves_a_valid_file_and_the_next_removes_its_leftovers(model, photos, searched, tmp_path):
    """SIGKILL in the middle of writing, in a process of its own."""
    output, replace = tmp_path / "poses.json", os.replace

    def killed(source, target):
        if b"2.png" in Path(source).read_bytes():
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    child = os.fork()
    if not child:
        os.replace = killed
        localize(model, photos, output, progress=False)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(entries(output)) == 2
    assert len(list(tmp_path.glob(".*.partial"))) == 1
    localize(model, photos, output, progress=False)
    assert searched == ["2.png", "3.png", "4.png"]
    assert len(entries(output)) == 5
    assert not list(tmp_path.glob(".*"))
