# SPDX-License-Identifier: Apache-2.0
import logging

import pytest
from anomalib.data.utils import LabelName

from anomalib_pose.data.listing import SUFFIXES, data_files, data_folders, file_named, image_files, is_good
from anomalib_pose.data.posed.datamodule import labeled_images

# One line for each name that is no data, however it ends.
LEFTOVERS = (
    ".hidden.png",
    "._a.png",
    ".a.png.partial",
    "a.png.part",
    "a.png.partial",
    "a.png~",
    "#a.png#",
    "a.png.bak",
    "a.png.swp",
    ".a.png.swp",
    "~$a.png",
    "Thumbs.db",
    "desktop.ini",
    "notes.txt",
)
NO_FOLDERS = (
    ".git",
    ".ipynb_checkpoints",
    "__MACOSX",
    "__pycache__",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    ".brick-x1y2",
    ".brick-x1y2-old",
    "brick.partial",
    "brick~",
)
NAMES = {
    "good": True,
    "Good": True,
    "GOOD": True,
    "good_1": True,
    "good-2": True,
    "good 3": True,
    "good4": True,
    "ok": True,
    "OK": True,
    "Ok_front": True,
    "normal": True,
    "NORMAL": True,
    "Normal_2": True,
    "goods": False,
    "not_good": False,
    "okra": False,
    "abnormal": False,
    "NG": False,
    "scratch": False,
}


@pytest.mark.parametrize("name", LEFTOVERS)
def test_leftovers_are_not_images(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "a.png").touch()
    assert image_files(tmp_path) == [tmp_path / "a.png"]


@pytest.mark.parametrize("name", NO_FOLDERS)
def test_folders_of_other_programs_are_not_data(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "brick").mkdir()
    (tmp_path / "file").touch()
    assert data_folders(tmp_path) == [tmp_path / "brick"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_suffixes_match_in_any_case_and_files_are_in_order(tmp_path, suffix):
    names = [f"a{suffix.upper()}", f"b{suffix}", f"c{suffix.title()}"]
    for name in reversed(names):
        (tmp_path / name).touch()
    (tmp_path / f"d{suffix}").mkdir()
    assert [path.name for path in image_files(tmp_path)] == names


def test_a_link_without_target_is_listed_so_that_its_reader_names_it(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    assert image_files(tmp_path) == [tmp_path / "a.png"]


def test_a_missing_folder_has_no_data(tmp_path):
    assert image_files(tmp_path / "x") == data_folders(tmp_path / "x") == data_files(tmp_path / "x", (".ply",)) == []


def test_a_file_is_looked_up_by_its_stem(tmp_path):
    for name in ("a.TIF", "b.jpg", "b.png", "a.b.png"):
        (tmp_path / name).touch()
    assert file_named(tmp_path, "a").name == "a.TIF"
    assert file_named(tmp_path, "b").name == "b.png"
    assert file_named(tmp_path, "a.b").name == "a.b.png"
    assert file_named(tmp_path, "c") == tmp_path / "c.png"


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names_that_mean_good(name, expected):
    assert is_good(name) == expected


def _kinds(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").touch()
    return folder


@pytest.mark.parametrize("good", ["good", "Good", "OK", "normal", "good_2"])
def test_good_folders_of_any_name_are_normal(tmp_path, caplog, good):
    labeled = labeled_images(_kinds(tmp_path, good, "scratch", ".ipynb_checkpoints", "__MACOSX"), None)
    assert {image.parent.name: label for image, label, _ in labeled} == {
        good: LabelName.NORMAL,
        "scratch": LabelName.ABNORMAL,
    }
    assert not caplog.records


def test_queries_without_a_good_folder_are_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        labeled_images(_kinds(tmp_path / "test", "scratch", "fine"), None)
    (record,) = caplog.records
    assert str(tmp_path / "test") in record.getMessage()
    assert "fine, scratch" in record.getMessage()


def test_images_outside_of_kinds_and_empty_kinds_are_reported(tmp_path, caplog):
    folder = _kinds(tmp_path / "test", "good", "scratch")
    (folder / "stray.PNG").touch()
    (folder / "dent").mkdir()
    (folder / ".cache").mkdir()
    with caplog.at_level(logging.WARNING):
        assert len(labeled_images(folder, None)) == 2
    (record,) = caplog.records
    assert "ignored" in record.getMessage()
    assert "stray.PNG, dent." in record.getMessage()
