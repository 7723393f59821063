# SPDX-License-Identifier: Apache-2.0
"""Localization of a folder of photographs, with a JSON file that is complete after every photograph."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.data.files import finite_json, write_text
from anomalib_pose.data.listing import SUFFIXES, data_folders, image_files
from anomalib_pose.data.masks import mask_of_image
from anomalib_pose.geometry.checks import check_matrix
from anomalib_pose.models.components import PoseMixin
from anomalib_pose.models.localization import estimate_photograph
from anomalib_pose.progress import show_progress, stage
from anomalib_pose.storage import check_output_file, no_space, remove_leftovers

logger = logging.getLogger(__name__)

_LOW_CONFIDENCE = 0.5
_CONVENTION = "OpenCV axes; p_world = camera_to_world @ p_camera; (0.5, 0.5) is the first pixel's center"
_UNDISTORTED = "; K belongs to the photograph after its lens distortion is removed"
_KILOBYTES = 1.5  # size of one entry
_FAST_WRITE = 0.05  # seconds below which the file is rewritten after every photograph, which suits thousands of them
_WRITING_SHARE = 0.05  # largest fraction of the time that is spent on rewriting a larger file


@dataclass(frozen=True)
class LocalizedFile:
    """Estimate of one photograph, as written to JSON.

    Args:
        file: path of the photograph.
        camera_to_world: estimated pose (4, 4), OpenCV axes.
        K: intrinsics (3, 3) in pixels of the photograph, which is undistorted if the training images had distortion.
        width: width in pixels.
        height: height in pixels.
        confidence: confidence of the pose, in [0, 1].
        residual: see ``PoseEstimate``.
        seconds: duration of reading and pose search.
    """

    file: str
    camera_to_world: list[list[float]]
    K: list[list[float]]
    width: int
    height: int
    confidence: float
    residual: float
    seconds: float


class _PoseFile:
    """JSON file with one entry per photograph, which is valid whenever it is read.

    Args:
        path: file to write.
        model: class name of the model.
        digest: hash of model and settings; entries of another hash are not used again.
        undistorted: whether lens distortion is removed from the photographs, which the file then says.
    """

    def __init__(self, path: Path, model: str, digest: str, *, undistorted: bool = False) -> None:
        self.path = path
        convention = _CONVENTION + (_UNDISTORTED if undistorted else "")
        self.header = {"model": model, "convention": convention, "digest": digest}
        self.entries: dict[str, dict[str, Any]] = {}
        self._lines: dict[str, str] = {}
        self._order: dict[str, int] = {}
        self._is_current = False
        self._written, self._duration = 0.0, 0.0

    def read_earlier(self) -> dict[str, dict[str, Any]]:
        """Return the entries of an earlier run with the same model and settings, by file.

        Raises:
            ValueError: if the file is no result of a localization, which is never overwritten.
        """
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        if not text.strip():
            return {}
        try:
            content = json.loads(text)
        except ValueError:
            content = {"convention": ""} if text.lstrip().startswith('{\n "model"') else None
        if not isinstance(content, dict) or "convention" not in content:
            msg = f"{self.path} exists and holds no cameras of photographs: remove it, or name another file."
            raise ValueError(msg)
        images = content.get("images")
        if content.get("digest") != self.header["digest"] or not isinstance(images, list):
            logger.warning("%s belongs to another model or other settings, and is replaced.", self.path)
            return {}
        return {entry["file"]: entry for entry in images if isinstance(entry, dict) and "file" in entry}

    def keep(self, earlier: Mapping[str, dict[str, Any]], pairs: Sequence[tuple[Path, Path | None]]) -> None:
        """Keep the entries of photographs that have not changed; an interruption therefore loses none of them.

        Args:
            earlier: entries of an earlier run, by file.
            pairs: photographs, each with its mask or None.
        """
        for photograph, mask in pairs:
            entry = earlier.get(str(photograph))
            if entry is not None and "error" not in entry and entry.get("content") == _content(photograph, mask):
                self._set(entry)
        self._order = {str(photograph): index for index, (photograph, _) in enumerate(pairs)}

    def _set(self, entry: dict[str, Any]) -> None:
        self.entries[entry["file"]] = entry
        self._lines[entry["file"]] = json.dumps(finite_json(entry), allow_nan=False)
        self._is_current = False

    def add(self, entry: dict[str, Any]) -> None:
        """Add or replace an entry, and write the file; a file that takes long is written from time to time.

        Args:
            entry: values for JSON; numbers that JSON does not have become null.
        """
        self._set(entry)
        wait = self._duration / _WRITING_SHARE if self._duration > _FAST_WRITE else 0
        if time.perf_counter() - self._written >= wait:
            self.write()

    def write(self) -> None:
        """Write all entries, replacing the file as a whole."""
        if self._is_current:
            return
        start = time.perf_counter()
        header = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in self.header.items())
        names = sorted(self._lines, key=lambda name: self._order.get(name, 0))
        lines = ",\n".join(f"  {self._lines[name]}" for name in names)
        write_text(self.path, f'{{\n{header} "images": [\n{lines}\n ]\n}}\n')
        self._is_current = True
        self._written = time.perf_counter()
        self._duration = self._written - start


def localize(
    model: PoseMixin,
    data: str | Path,
    output: str | Path,
    masks: str | Path | None = None,
    intrinsics: Tensor | None = None,
    *,
    progress: bool = True,
) -> list[LocalizedFile]:
    """Estimate the camera poses of all photographs of a folder, write them as JSON and log a summary.

    The file is valid and complete after every photograph. A photograph that cannot be localized gets an entry with its
    ``error``, and does not end the run. A repeated call continues an interrupted one: it searches only photographs that
    are new, changed or failed, as long as model and settings are the same.

    Args:
        model: fitted scene model.
        data: photograph, or folder that directly contains photographs.
        output: file to write.
        masks: folder with one mask per photograph, the object white on black, named like the photograph; see
            ``mask_of_image``. None for no masks.
        intrinsics: K (3, 3) of all photographs; None for the intrinsics of the training views.
        progress: show a progress bar.

    Returns:
        The estimates in the order of the files, without those that failed.

    Raises:
        FileNotFoundError: if there are no photographs, or a mask is missing.
        ValueError: if the output cannot be written, or no photograph could be localized; see ``estimate_pose``.
    """
    pairs = _photographs(Path(data), None if masks is None else Path(masks))
    path = check_output_file(output, len(pairs) * _KILOBYTES / 1000)
    if intrinsics is not None:
        check_matrix(intrinsics, "The photographs")
    query_format = model.model.query_format
    undistorted = intrinsics is None and query_format is not None and any(c.distortion for c in query_format.cameras)
    file = _PoseFile(path, type(model).__name__, _digest(model, intrinsics), undistorted=undistorted)
    file.keep(file.read_earlier(), pairs)
    reused = len(file.entries)
    remove_leftovers(path.parent)
    try:
        with show_progress(progress), stage("Localize photographs", len(pairs)) as bar:
            for photograph, mask in pairs:
                if str(photograph) not in file.entries:
                    content = _content(photograph, mask)
                    file.add({**_localize_file(model, photograph, mask, intrinsics), "content": content})
                bar.advance()
        file.write()
    except OSError as error:
        if no_space(error):
            msg = f"The disk of {path} is full: free space and repeat the command, which continues."
            raise OSError(error.errno, msg) from error
        raise
    except KeyboardInterrupt:
        file.write()
        logger.warning(
            "Interrupted: %s has %d of %d photographs, and the same command continues.",
            path, len(file.entries), len(pairs),
        )  # fmt: skip
        raise
    if reused:
        logger.info("%d of %d photographs were already in %s, with the same model and settings.",
                    reused, len(pairs), path)  # fmt: skip
    return _finish(model, [file.entries[str(photograph)] for photograph, _ in pairs], path)


def _finish(model: PoseMixin, entries: Sequence[dict[str, Any]], path: Path) -> list[LocalizedFile]:
    """Log a summary and return the estimates."""
    failures = [entry for entry in entries if "error" in entry]
    for entry in failures[:3]:
        logger.warning("Not localized: %s", entry["error"])
    if failures:
        logger.warning(
            "%d of %d photographs could not be localized; their entries in %s have the reasons.",
            len(failures), len(entries), path,
        )  # fmt: skip
    if len(failures) == len(entries):
        msg = f"None of {len(entries)} photographs could be localized. The first reason: {failures[0]['error']}"
        raise ValueError(msg)
    names = [field.name for field in fields(LocalizedFile)]
    estimates = [LocalizedFile(*(entry[name] for name in names)) for entry in entries if "error" not in entry]
    _log_summary(model, estimates, path)
    return estimates


def _log_summary(model: PoseMixin, estimates: Sequence[LocalizedFile], output: Path) -> None:
    low_confidence = sum(estimate.confidence < _LOW_CONFIDENCE for estimate in estimates)
    advice = ""
    if low_confidence and model.model.estimator.feature_localizer is None:
        advice = " For feature matching, give a matcher and the file of its weights."
    if low_confidence and model.model.bank.rolls == 1:
        advice += " For photographs at any in-plane rotation, set rolls to 12."
    logger.info(
        "Localized %d photographs in %.1f s, %d of them with a confidence below %g: %s.%s",
        len(estimates), sum(estimate.seconds for estimate in estimates), low_confidence, _LOW_CONFIDENCE, output,
        advice,
    )  # fmt: skip


def _localize_file(model: PoseMixin, path: Path, mask: Path | None, intrinsics: Tensor | None) -> dict[str, Any]:
    """Return the entry of one photograph: its camera, or the error that reading or search raised."""
    start = time.perf_counter()
    try:
        estimate = estimate_photograph(model, path, intrinsics, mask)
    except Exception as error:  # damaged files can raise anything; the other photographs should not wait for them
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"file": str(path), "error": reason if path.name in reason else f"{path}: {reason}"}
    camera = estimate.camera
    return asdict(
        LocalizedFile(
            str(path),
            camera.camera_to_world.tolist(),
            camera.K.tolist(),
            camera.width,
            camera.height,
            estimate.confidence,
            estimate.residual,
            time.perf_counter() - start,
        )
    )


def _digest(model: PoseMixin, intrinsics: Tensor | None) -> str:
    """Return a hash of everything but the photograph that an estimate depends on."""
    lightning: Any = model  # the mixin does not declare what it inherits from Lightning
    settings = {name: value for name, value in dict(lightning.hparams).items() if name != "fit_checkpoint"}
    known = None if intrinsics is None else intrinsics.tolist()
    digest = hashlib.sha256(json.dumps([type(model).__name__, settings, known], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _content(*paths: Path | None) -> str:
    """Return a hash of a photograph and its mask, so that a changed file is searched again."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(b"" if path is None else path.read_bytes())
        except OSError:  # the search reports the error
            digest.update(b"unreadable")
    return digest.hexdigest()[:16]


def _photographs(data: Path, masks: Path | None) -> list[tuple[Path, Path | None]]:
    """List photographs with their masks. A missing mask is an error before the search begins."""
    files = image_files(data) if data.is_dir() else [data]
    if not files or not files[0].is_file():
        msg = f"There are no photographs at {data}: expected a file, or a folder with {', '.join(SUFFIXES)} files."
        raise FileNotFoundError(msg)
    folders = [folder.name for folder in data_folders(data) if image_files(folder) and folder != masks]
    if folders:
        logger.warning("The subfolders of %s are not searched for photographs: %s.", data, ", ".join(folders[:3]))
    if masks is None:
        return [(path, None) for path in files]
    pairs = [(path, mask_of_image(masks, path)) for path in files]
    missing = [(path, mask) for path, mask in pairs if not mask.is_file()]
    if missing:
        msg = (
            f"{masks} should have one mask per photograph, but {len(missing)} of {len(pairs)} are missing. The first "
            f"is {missing[0][1]} for {missing[0][0]}."
        )
        raise FileNotFoundError(msg)
    return [*pairs]
