# SPDX-License-Identifier: Apache-2.0
"""Folders for compiled kernels that no other user can write.

Numba reads compiled kernels by pickle, so who can write the folder can run code in this process. A folder is private
if it and its files belong to this user or to root, no other user can write them, and no other user can replace the
folder or one of its parents.
"""

import os
import stat
from functools import cache
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_FILES = (".nbi", ".nbc")
"""Suffixes of numba's files."""


@cache
def is_private(folder: Path) -> bool:
    """Return whether only this user and root can write a folder and the compiled kernels in it.

    Args:
        folder: folder that exists.
    """
    if not hasattr(os, "getuid"):  # Windows, where folders of a user are private
        return True
    trusted = {os.getuid(), 0}
    try:
        status = folder.stat()
        if status.st_uid not in trusted or status.st_mode & _OTHERS_WRITE:
            return False
        if status.st_mode & _OTHERS:  # others can reach the files
            for file in folder.iterdir():
                if file.suffix in _FILES:
                    entry = file.lstat()
                    if entry.st_uid not in trusted or entry.st_mode & _OTHERS_WRITE:
                        return False
        return all(_is_safe_parent(parent.stat(), trusted) for parent in folder.resolve().parents)
    except OSError:
        return False


def _is_safe_parent(status: os.stat_result, trusted: set[int], writers: int = _OTHERS_WRITE) -> bool:
    """Return whether no other user can replace the entries of a folder."""
    return status.st_uid in trusted and (not status.st_mode & writers or bool(status.st_mode & stat.S_ISVTX))


@cache
def own_folder() -> Path | None:
    """Create a folder for compiled kernels in the user's cache folder; None if that is not possible.

    No other user can enter it. Its parents may be writable for groups, as home folders of some systems are.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "anomalib_pose" / "kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, parents = folder.stat(), [parent.stat() for parent in folder.resolve().parents]
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    if not hasattr(os, "getuid"):
        return folder
    trusted = {os.getuid(), 0}
    closed = status.st_uid == os.getuid() and not status.st_mode & _OTHERS and os.access(folder, os.W_OK)
    return folder if closed and all(_is_safe_parent(parent, trusted, stat.S_IWOTH) for parent in parents) else None
