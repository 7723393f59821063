# SPDX-License-Identifier: Apache-2.0
"""Compiled kernels are loaded only from folders that no other user can write."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomalib_pose.render import kernel_cache
from anomalib_pose.render.kernel_cache import is_private, own_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders of a Windows user are private")
as_root = pytest.mark.skipif(getattr(os, "getuid", lambda: 1)() != 0, reason="only root can give files away")

FOLDERS = {
    "private": (0o700, 0o755, 0o644, True),
    "readable": (0o755, 0o755, 0o644, True),
    "closed, with open files": (0o700, 0o755, 0o666, True),
    "group-writable": (0o775, 0o755, 0o644, False),
    "world-writable": (0o777, 0o755, 0o644, False),
    "world-writable and sticky": (0o1777, 0o755, 0o644, False),
    "group-writable files": (0o755, 0o755, 0o664, False),
    "world-writable files": (0o755, 0o755, 0o666, False),
    "in a world-writable folder": (0o755, 0o777, 0o644, False),
    "in a group-writable folder": (0o755, 0o775, 0o644, False),
    "in a world-writable sticky folder": (0o755, 0o1777, 0o644, True),
}


def make(root: Path, folder_mode: int, parent_mode: int, file_mode: int) -> Path:
    folder = root / "parent" / "kernels"
    folder.mkdir(parents=True)
    (folder / "kernel.nbi").write_bytes(b"index")
    (folder / "kernel.nbi").chmod(file_mode)
    folder.chmod(folder_mode)
    folder.parent.chmod(parent_mode)
    return folder


@pytest.fixture(autouse=True)
def no_memory(monkeypatch):
    is_private.cache_clear()
    own_folder.cache_clear()
    yield
    is_private.cache_clear()
    own_folder.cache_clear()


@pytest.mark.parametrize("name", FOLDERS)
def test_which_folders_are_private(name, tmp_path):
    *modes, expected = FOLDERS[name]
    assert is_private(make(tmp_path, *modes)) == expected


@as_root
@pytest.mark.parametrize("part", [".", "..", "kernel.nbi"])
def test_folders_and_files_of_another_user_are_not_private(part, tmp_path):
    folder = make(tmp_path, 0o755, 0o755, 0o644)
    os.chown(folder / part, 12345, 12345)
    assert not is_private(folder)


def test_a_missing_folder_is_not_private(tmp_path):
    assert not is_private(tmp_path / "none")


@pytest.mark.parametrize(("mode", "works"), [(None, True), (0o700, True), (0o755, False), (0o777, False)])
def test_the_own_folder_is_closed_to_others(mode, works, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "anomalib_pose" / "kernels"
    if mode is not None:
        folder.mkdir(parents=True)
        folder.chmod(mode)
    assert own_folder() == (folder if works else None)
    assert not works or folder.stat().st_mode & 0o077 == 0


def test_without_a_place_for_it_there_is_no_own_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert own_folder() is None
    own_folder.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(kernel_cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert own_folder() is None


CODE = """
import logging
logging.basicConfig(format="%(message)s")
import numba
from anomalib_pose.render import compiled
import anomalib_pose.render.point_kernels
print(compiled.exp.stats.cache_path, numba.config.CACHE_DIR, sep="|")
"""


@pytest.mark.parametrize("kind", ["private", "open", "nowhere"])
def test_kernels_are_cached_only_in_private_folders(kind, tmp_path):
    cache = tmp_path / "numba"
    cache.mkdir()
    cache.chmod(0o700 if kind == "private" else 0o777)
    home = tmp_path / "home"
    if kind == "nowhere":
        home.touch()
    else:
        home.mkdir()
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "XDG_CACHE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    path, chosen = done.stdout.strip().split("|")
    expected = {"private": str(cache), "open": str(home / "anomalib_pose" / "kernels"), "nowhere": "None"}[kind]
    assert path.startswith(expected)
    assert chosen == str(cache)
    assert done.stderr.count("not kept between runs") == (kind == "nowhere")
