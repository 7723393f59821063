# SPDX-License-Identifier: Apache-2.0
"""Outputs are checked before work, and only this package's files of dead runs are removed."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from anomalib_pose import storage
from anomalib_pose.storage import (
    check_output_file,
    check_output_folder,
    make_temporary_folder,
    remove_leftovers,
    temporary_name,
    written_whole,
)


@pytest.mark.parametrize("name", ["a.json", "new/a.json", "new/folder/a.json", "there.json"])
def test_files_that_can_be_written_are_accepted_and_nothing_is_made(tmp_path, name):
    (tmp_path / "there.json").write_text("{}")
    assert check_output_file(tmp_path / name, 0.001) == tmp_path / name
    assert [path.name for path in tmp_path.rglob("*")] == ["there.json"]


@pytest.mark.parametrize(
    ("name", "megabytes", "message"),
    [
        ("folder", 0, "is a folder"),
        ("pipe", 0, "is a device or pipe"),
        ("file/a.json", 0, "is a file"),
        ("file/deeper/a.json", 0, "is a file"),
        ("dangling/a.json", 0, "is a file"),
        ("/proc/a.json", 0, "cannot be written"),
        ("a.json", 1e12, r"needs about 1000000000000 MB, but its disk has \d+ MB left"),
    ],
)
def test_files_that_cannot_be_written_are_refused(tmp_path, name, megabytes, message):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(ValueError, match=message):
        check_output_file(tmp_path / name, megabytes)


def test_a_full_disk_is_refused(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    check_output_folder(tmp_path, 0.9)
    with pytest.raises(ValueError, match="needs about 2 MB, but its disk has 1 MB left"):
        check_output_folder(tmp_path, 2)


def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a device or pipe"), written_whole(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(tmp_path / "a.txt") as partial:
        partial.write_text("ne")
        raise OSError(28, "full")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_only_leftovers_of_dead_runs_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    mine, my_folder = temporary_name(tmp_path / "a.json"), make_temporary_folder(tmp_path, "toy")
    mine.write_text("")
    (my_folder / "a.png").write_text("")
    dead = f"-{process.pid}"
    elsewhere = {"0": "f", "f": "0"}.get(storage._HOST[0], "f") + storage._HOST[1:]
    leftovers = [
        mine.with_name(mine.name.replace(f"-{os.getpid()}", dead)),
        my_folder.with_name(my_folder.name.replace(f"-{os.getpid()}", dead)),
        tmp_path / ".old.json.partial",
        tmp_path / f".b.json.{elsewhere}-1.partial",
    ]
    kept = [
        tmp_path / ".young.json.partial",
        tmp_path / f".c.json.{elsewhere}-1.partial",
        tmp_path / "user.ckpt.part",
        tmp_path / "user.partial",
        tmp_path / ".hidden",
        tmp_path / ".toy-backup",
        tmp_path / f".gone-{storage._HOST}{dead}-abcdefgh-old",  # the only copy of a category
    ]
    for path in [*leftovers, *kept]:
        if path.suffix in {".partial", ".part"}:
            path.write_text("")
        else:
            path.mkdir()
            (path / "a.png").write_text("")
    long_ago = time.time() - 30 * 3600
    for path in (leftovers[2], leftovers[3], tmp_path / "user.ckpt.part", tmp_path / "user.partial"):
        os.utime(path, (long_ago, long_ago))
    (tmp_path / ".link.partial").symlink_to(tmp_path / ".hidden")
    assert sorted(remove_leftovers(tmp_path)) == sorted(leftovers)
    assert {*kept, mine, my_folder, tmp_path / ".link.partial"} == set(tmp_path.iterdir())
    assert remove_leftovers(tmp_path / "none") == []
