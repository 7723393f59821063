# SPDX-License-Identifier: Apache-2.0
"""Checks of output files and folders before long work, temporary names, and removal of what dead runs left behind."""

import errno
import logging
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_DAY = 24 * 3600.0
_HOST = f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"
_RUN = r"(?P<host>[0-9a-f]{4})-(?P<process>\d+)"
_TEMPORARY = re.compile(rf"^\..+\.{_RUN}\.partial$")
_OLD_TEMPORARY = re.compile(r"^\..+\.partial$")
_TEMPORARY_FOLDER = re.compile(rf"^\.(?P<name>.+)-{_RUN}-[a-z0-9_]{{8}}(?P<old>-old)?$")


def check_output_file(path: str | Path, megabytes: float = 0.0) -> Path:
    """Check that a file can be written, before the work whose result it will hold.

    Args:
        path: file to write; it may exist, and its folder may be missing.
        megabytes: estimated size of the file.

    Returns:
        The path.

    Raises:
        ValueError: if the path is a folder or device, its folder cannot be made or written, or the disk has too little
            space.
    """
    path = Path(path)
    if path.is_dir():
        msg = f"{path} should be a file to write, but is a folder: add the name of a file."
        raise ValueError(msg)
    _check_replaceable(path)
    if path.exists() and not os.access(path, os.W_OK):
        msg = f"{path} is read-only: name another file, or change its permissions."
        raise ValueError(msg)
    check_output_folder(path.parent, megabytes)
    return path


def _check_replaceable(path: Path) -> None:
    """Refuse devices and pipes, for example /dev/stdout, which a file that is written whole would replace."""
    if path.exists() and not path.is_file() and not path.is_dir():
        msg = f"{path} is a device or pipe, not a file: name a file to write."
        raise ValueError(msg)


def check_output_folder(folder: str | Path, megabytes: float = 0.0) -> Path:
    """Check that files can be written to a folder, before the work whose results it will hold.

    Args:
        folder: folder to write to; it may be missing.
        megabytes: estimated size of all files.

    Returns:
        The folder.

    Raises:
        ValueError: if the folder cannot be made or written, or the disk has too little space.
    """
    folder = Path(folder)
    existing = folder.absolute()
    while not (existing.exists() or existing.is_symlink()) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        msg = f"{folder} cannot be a folder, because {existing} is a file: name another folder."
        raise ValueError(msg)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        msg = f"{folder} cannot be written ({error.strerror}): name another folder, or change its permissions."
        raise ValueError(msg) from error
    free = shutil.disk_usage(existing).free / 1e6
    if free < megabytes:
        msg = f"{folder} needs about {megabytes:.0f} MB, but its disk has {free:.0f} MB left: free space there."
        raise ValueError(msg)
    return folder


def temporary_name(path: Path) -> Path:
    """Return the hidden name under which this process writes a file, before the file gets its own name.

    Args:
        path: file to write.
    """
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.partial")


def make_temporary_folder(parent: Path, name: str) -> Path:
    """Make a hidden folder that this process fills before the folder gets its own name.

    Args:
        parent: folder in which the folder is made.
        name: later name of the folder.
    """
    return Path(tempfile.mkdtemp(prefix=f".{name}-{_HOST}-{os.getpid()}-", dir=parent))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name; the file gets its own name if the block ends, and is removed if the block fails.

    Args:
        path: file to write; its folder is made.

    Raises:
        ValueError: if the path is a device or pipe, which the new file would replace.
    """
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(path)
    try:
        yield partial
        os.replace(partial, path)  # noqa: PTH105 - atomic on every platform
    finally:
        partial.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Remove this package's temporary files and folders whose run has ended, and log how many.

    A temporary name holds the machine and the process that wrote it. What another machine or an earlier version wrote
    is removed after a day.

    Args:
        folder: folder that a run is about to write to; its subfolders are not searched.

    Returns:
        The removed paths.
    """
    folder = Path(folder)
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_symlink() and _is_leftover(path):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError:  # another run removes it too, or it belongs to another user
                continue
            removed.append(path)
    if removed:
        logger.info("Removed %d unfinished files of earlier runs from %s.", len(removed), folder)
    return removed


def no_space(error: OSError) -> bool:
    """Return whether an error says that the disk, or the user's part of it, is full.

    Args:
        error: error of a write.
    """
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def _is_leftover(path: Path) -> bool:
    pattern = _TEMPORARY_FOLDER if path.is_dir() else _TEMPORARY
    match = pattern.match(path.name)
    if match is not None and match.groupdict().get("old") and not path.with_name(match["name"]).exists():
        return False  # the run ended between two renamings, and this is the only copy of the earlier category
    if match is not None and match["host"] == _HOST and not _is_running(int(match["process"])):
        return True
    if match is not None:
        return _age(path) > _DAY
    return path.is_file() and _OLD_TEMPORARY.match(path.name) is not None and _age(path) > _DAY


def _is_running(process: int) -> bool:
    if os.name == "nt":  # signal 0 would interrupt the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # the process of another user
        return True
    return True


def _age(path: Path) -> float:
    """Return the seconds since a file, or the newest file of a folder, was written."""
    try:
        return time.time() - max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
    except OSError:
        return 0.0
