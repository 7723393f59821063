# SPDX-License-Identifier: Apache-2.0
"""Lists of the files and folders that are data, and the names of folders that mean good.

Hidden files, notebook checkpoints, resource forks, thumbnails, backups of editors and unfinished files are never data.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Suffixes of images, in lower case; a file's suffix may have any case."""
CLOUD_SUFFIXES = (".tiff", ".tif")
"""Suffixes of organized clouds."""

_UNREAD_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".avif", ".jxl", ".gif", ".jp2", ".jfif", ".jpe", ".exr", ".hdr", ".tga", ".psd"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw"),
    }
)
_HIDDEN_PREFIXES = (".", "~$")
_BACKUP_SUFFIXES = ("~", ".bak", ".orig", ".tmp", ".part", ".partial", ".crdownload", ".swp")
_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "lost+found", "__pycache__"),
    }
)
_reported: set[Path] = set()
_GOOD = re.compile(r"(good|ok|normal)([^a-z].*)?", re.IGNORECASE | re.DOTALL)


def is_data(path: Path) -> bool:
    """Return whether a file or folder may be data, by its name."""
    name = path.name.lower()
    is_backup = name.endswith(_BACKUP_SUFFIXES) or (name[0] == name[-1] == "#")
    return not (is_backup or name.startswith(_HIDDEN_PREFIXES) or name in _SYSTEM_NAMES)


def image_files(folder: Path) -> list[Path]:
    """List the images directly in a folder, sorted by name; a folder that does not exist has none.

    Photographs in formats that are not read are reported once for a folder.
    """
    report_unread(folder)
    return data_files(folder, SUFFIXES)


def report_unread(folder: Path) -> None:
    """Log the photographs of a folder whose formats are not read, once for a folder."""
    unread = sorted(path.name for path in _entries(folder) if path.suffix.lower() in _UNREAD_SUFFIXES)
    if unread and folder not in _reported:
        _reported.add(folder)
        logger.warning(
            "%d files in %s have formats that are not read (%s): convert them to PNG, JPEG, BMP, TIFF or WebP.",
            len(unread), folder, first_names(unread),
        )  # fmt: skip


def data_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files directly in a folder that have one of the suffixes, in any case, sorted by name.

    Links without a target are listed, so that their reader names them. A folder that does not exist has no files.
    """
    return sorted(
        path
        for path in _entries(folder)
        if path.suffix.lower() in suffixes and (path.is_file() or (path.is_symlink() and not path.exists()))
    )


def data_folders(folder: Path) -> list[Path]:
    """List the subfolders that may hold data, sorted by name; a folder that does not exist has none."""
    return sorted(path for path in _entries(folder) if path.is_dir())


def file_named(folder: Path, stem: str, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Return the file of a folder that has the given name without suffix.

    Of several files, the one whose suffix comes first in ``suffixes`` is returned. A suffix may have any case. If there
    is no file, the path with the first suffix is returned, as an error message needs it.
    """
    usual = [folder / f"{stem}{suffix}" for suffix in suffixes]
    for path in usual:
        if path.is_file():
            return path
    files = [path for path in data_files(folder, suffixes) if path.stem == stem]
    return min(files, key=lambda path: suffixes.index(path.suffix.lower()), default=usual[0])


def is_good(name: str) -> bool:
    """Return whether a folder of this name has normal images.

    It has if the name is ``good``, ``ok`` or ``normal`` in any case, alone or followed by a character that is no
    letter: ``good``, ``OK`` and ``Normal_2`` are good, ``goods`` is not.
    """
    return _GOOD.fullmatch(name) is not None


def warn_without_good(folder: Path, kinds: Iterable[Path]) -> None:
    """Log one warning if none of the kinds of images in a test folder is good."""
    names = [kind.name for kind in kinds]
    if names and not any(is_good(name) for name in names):
        logger.warning(
            "%s has no subfolder 'good' (or 'ok', 'normal'), so all its images count as anomalous: it has %s.",
            folder,
            ", ".join(names),
        )


def first_names(names: Sequence[str], count: int = 3) -> str:
    """Return the first names of many for a message, with an ellipsis if there are more.

    Args:
        names: names of files.
        count: number of names in the message.
    """
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if is_data(path)] if folder.is_dir() else []
