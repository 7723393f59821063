# SPDX-License-Identifier: Apache-2.0
"""Comparison of a pose file with the photographs on disk: a finder of the named files, and one report."""

import contextlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from anomalib_pose.data.listing import SUFFIXES, data_folders, first_names, image_files

logger = logging.getLogger(__name__)

_SEPARATOR = re.compile(r"[._-]")
_ABSOLUTE = re.compile(r"^(/|[A-Za-z]:|file:)")
_IMAGE_FOLDER = "images"
_CHANNEL = re.compile(
    r"[._-]?(alpha|albedo|confidence|depth|diffuse|edge|fg|foreground|label|mask|matte|normal|object|seg|semantic)",
    re.IGNORECASE,
)


class FileFinder:
    """Finder of files by the names in a pose file, which another program or machine may have written.

    A name is relative to the folder, with or without its suffix. It may have ``./``, backslashes, another case or
    another Unicode form than the file. Of a path that does not exist here, for example an absolute path of another
    machine, the finder takes the longest tail that exists in the folder.

    Args:
        folder: folder to which the names are relative; its own name may differ in case, too.
    """

    def __init__(self, folder: Path) -> None:
        self._listings: dict[Path, tuple[set[str], dict[str, list[str]]]] = {}
        name = None if folder.is_dir() else self._entry(folder.parent, [folder.name])
        self.folder = folder if name is None else folder.parent / name

    def find(self, name: str) -> Path | None:
        """Return the file of a name, or None if there is none or several match equally well."""
        text = name.strip().replace("\\", "/")
        if text.startswith("/") and (path := _existing(text)):
            return path
        paths = (path for base, parts in self._places(text) if (path := self._walk(base, parts)))
        path = next(paths, None)
        if path is None and "%" in text and unquote(text) != text:
            return self.find(unquote(text))
        return path

    def key(self, name: str) -> str:
        """Return a text that is equal for all names of one file, whether or not the file exists."""
        path = self.find(name)
        return str(path.absolute()) if path else _fold("/".join(_parts(name.strip().replace("\\", "/"))))

    def _places(self, text: str) -> Iterator[tuple[Path, list[str]]]:
        """Yield folders and the parts of a path in them, most likely first."""
        parts = _parts(text)
        if not parts:
            return
        relative = not _ABSOLUTE.match(text)
        if relative:
            yield self.folder, parts
        own = [_fold(part) for part in self.folder.resolve().parts]
        for start in range(len(parts)):
            # A relative path loses leading folders only where they are the folder's own: train/0.png is not 0.png.
            dropped = [_fold(part) for part in parts[:start]]
            if relative and not set(dropped) <= {".."} and dropped != own[-start:]:
                continue
            yield self.folder, parts[start:]
        if not relative or len(parts) == 1:
            yield self.folder / _IMAGE_FOLDER, parts[-1:]

    def _walk(self, folder: Path, parts: list[str]) -> Path | None:
        for part in parts[:-1]:
            if part == "..":
                folder = folder.absolute().parent
                continue
            name = self._entry(folder, [part])
            if name is None:
                return None
            folder = folder / name
        name = self._entry(folder, [parts[-1], *(parts[-1] + suffix for suffix in SUFFIXES)], files=True)
        return None if name is None else folder / name

    def _entry(self, folder: Path, names: Sequence[str], *, files: bool = False) -> str | None:
        """Return the entry of a folder with the first of some names: the exact name, or one that differs in case."""
        exact, folded = self._listing(folder)
        for name in names:
            if name in exact and (not files or (folder / name).is_file()):
                return name
        for name in names:
            matches = [match for match in folded.get(_fold(name), []) if not files or (folder / match).is_file()]
            if len(matches) == 1:
                return matches[0]
        return None

    def _listing(self, folder: Path) -> tuple[set[str], dict[str, list[str]]]:
        if folder not in self._listings:
            try:
                names = [path.name for path in folder.iterdir()]
            except OSError:
                names = []
            folded: dict[str, list[str]] = {}
            for name in names:
                folded.setdefault(_fold(name), []).append(name)
            self._listings[folder] = set(names), folded
        return self._listings[folder]


@dataclass
class PoseFileReport:
    """Differences between a pose file and the photographs.

    Args:
        source: the pose file, or folder of the model.
        folder: folder of the photographs.
        frames: number of frames in the file that should be used.
        missing: names of frames without an image.
        without_pose: names of frames without a pose.
        repeated: names of frames that repeat another frame.
        unposed: images beside the posed images that no frame names.
        notes: further sentences, without a period.
    """

    source: Path
    folder: Path
    frames: int
    missing: list[str] = field(default_factory=list)
    without_pose: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unposed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Check that enough frames have an image and a pose.

        Raises:
            FileNotFoundError: if two thirds of the images or more do not exist.
            ValueError: if two thirds of the poses or more are missing.
        """
        if self.missing and 3 * len(self.missing) >= 2 * self.frames:
            msg = (
                f"{self.source} names images that do not exist in {self.folder}: {len(self.missing)} of {self.frames} "
                f"({first_names(self.missing)}). Copy the images there, or correct the names."
            )
            raise FileNotFoundError(msg)
        lost = len(self.missing) + len(self.without_pose)
        if self.without_pose and 3 * lost >= 2 * self.frames:
            msg = (
                f"{self.source} has no pose of {len(self.without_pose)} of {self.frames} images "
                f"({first_names(self.without_pose)}): pose the images again, or remove them."
            )
            raise ValueError(msg)
        if 3 * lost >= 2 * self.frames:
            msg = f"{self.source} has no usable frame: expected images with poses."
            raise ValueError(msg)

    def log(self) -> None:
        """Log all differences in one line."""
        sentences = [
            f"{len(names)} of {self.frames} frames {what} ({first_names(names)})"
            for names, what in (
                (self.missing, "have no image and are not used"),
                (self.without_pose, "have no pose and are not used"),
                (self.repeated, "repeat another frame and are not used"),
            )
            if names
        ]
        if self.unposed:
            sentences.append(f"{len(self.unposed)} images have no pose and are not used ({first_names(self.unposed)})")
        sentences += self.notes
        if sentences:
            logger.warning("%s and the images in %s differ: %s.", self.source, self.folder, "; ".join(sentences))


def unposed_images(posed: Iterable[Path], others: Iterable[Path] = (), root: Path | None = None) -> list[Path]:
    """List the images beside posed images that have no pose themselves.

    Masks, depth maps and other channels that a program writes beside an image have its name and then, for example,
    ``_mask``, or a second suffix; they do not count.

    Args:
        posed: the images with a pose.
        others: further files that do not count, for example masks.
        root: folder in whose subfolders images without pose are looked for, too.
    """
    known = {path.resolve() for path in posed}
    stems = {path.stem for path in known}
    excluded = known | {path.resolve() for path in others}
    folders = {path.parent for path in known} | (set() if root is None else set(_subfolders(root.resolve())))
    images = (path for folder in sorted(folders) for path in image_files(folder))
    return [path for path in images if path.resolve() not in excluded and not _is_channel(path.stem, stems)]


def _subfolders(folder: Path) -> Iterator[Path]:
    """Yield a folder and all folders in it, without those of masks and other channels."""
    yield folder
    for child in data_folders(folder):
        if not _CHANNEL.match(child.name) and not child.is_symlink():
            yield from _subfolders(child)


def _is_channel(stem: str, stems: set[str]) -> bool:
    """Return whether a name without suffix is of a channel of an image: 7_mask, 7_depth_0001, or 7.jpg of 7.jpg.png."""
    if Path(stem).suffix.lower() in SUFFIXES and Path(stem).stem in stems:
        return True
    return any(
        stem[: match.start()] in stems and _CHANNEL.match(stem[match.start() :]) for match in _SEPARATOR.finditer(stem)
    )


def _existing(text: str) -> Path | None:
    """Return the file of an absolute path, with or without its suffix, if it exists on this machine."""
    for suffix in ("", *SUFFIXES):
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            if (path := Path(text + suffix)).is_file():
                return path
    return None


def _parts(text: str) -> list[str]:
    return [part for part in text.split("/") if part not in {"", "."}]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
