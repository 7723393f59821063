# SPDX-License-Identifier: Apache-2.0
"""File from which an interrupted fit of a detector continues: first the scene's fit, then its finished stages."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.utils.serialization import anomalib_safe_globals
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.progress import stage
from anomalib_pose.scene.fit_loop import FitCheckpointError, checkpoint_outlives_fit, save_or_warn
from anomalib_pose.storage import check_output_file

if TYPE_CHECKING:
    from anomalib_pose.models.components.scene_detector import SceneDetector

logger = logging.getLogger(__name__)

AUTOMATIC = "auto"
"""Setting for a file beside the results, named by a hash of data and settings."""

FIT_KEY = "anomalib_pose_fit"
"""Key of a model's checkpoint under which the hash of its fit is stored."""

_EARLIER_RUNS = 10  # newest earlier runs that are searched for the same fit
_VERSIONED = re.compile(r"v\d+")
_IGNORED_SETTINGS = ("fit_checkpoint", "pre_processor", "post_processor", "evaluator", "visualizer")

StageResult = Mapping[str, Tensor] | None
"""Tensors that later stages need beside the detector's state, or None."""


class FitCheckpoint:
    """File from which an interrupted fit continues.

    Args:
        path: file; it need not exist.
        digest: hash of the data and settings of the fit.
        automatic: ignore a file that is damaged or belongs to another fit, instead of refusing it.
    """

    def __init__(self, path: Path, digest: str, *, automatic: bool) -> None:
        self.path = path
        self.digest = digest
        self.automatic = automatic

    def read(self) -> dict[str, Any]:
        """Return the state of the finished stages; empty if there is none.

        Raises:
            ValueError: if the file is damaged or belongs to another fit, unless the file is automatic.
        """
        if not self.path.is_file():
            return {}
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file can raise anything
            self.reject(f"{self.path} should be the checkpoint of an interrupted fit, but cannot be read", error)
            return {}
        if isinstance(content, dict) and content.get("digest") == self.digest and "detector" in content:
            return content
        if not isinstance(content, dict) or "step" not in content:
            self.reject(f"The checkpoint {self.path} belongs to a fit of other images or with other settings", None)
        return {}

    def reject(self, reason: str, error: Exception | None) -> None:
        """Remove an automatic file with one line, or refuse a file that the user named.

        Args:
            reason: what is wrong, without a full stop.
            error: cause, or None.

        Raises:
            ValueError: if the user named the file.
        """
        if not self.automatic:
            msg = f"{reason}. Remove it to start again, or name another checkpoint."
            raise ValueError(msg) from error
        logger.warning("%s. It is removed, and the fit starts again.", reason)
        self.remove()

    def write(self, content: dict[str, Any]) -> None:
        """Replace the file; a full disk is a warning.

        Args:
            content: see ``FitStages``.
        """
        save_or_warn(self.path, {"digest": self.digest, **content})

    def remove(self) -> None:
        """Remove the file, and what an earlier version left beside it."""
        for path in (self.path, self.path.with_name(self.path.name + ".part")):
            path.unlink(missing_ok=True)


class FitStages:
    """Runs the stages of a detector's fit, and skips those that an interrupted fit has finished.

    After each stage, the checkpoint gets the detector's state, the names of the finished stages and their results.

    Args:
        detector: detector; the state of the finished stages is loaded into it.
        checkpoint: file, or None to keep nothing.
    """

    def __init__(self, detector: "SceneDetector", checkpoint: FitCheckpoint | None) -> None:
        self.detector = detector
        self.checkpoint = checkpoint
        self.finished: dict[str, dict[str, Tensor]] = {}
        content = {} if checkpoint is None else checkpoint.read()
        if checkpoint is not None and content:
            try:
                detector.load_state_dict(content["detector"])
                self.finished = content["finished"]
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                checkpoint.reject(f"The checkpoint {checkpoint.path} is of another version of the model", error)
                return
            logger.info("The fit continues from %s, after the stage '%s'.", checkpoint.path, list(self.finished)[-1])

    def run(self, title: str, work: Callable[[], StageResult]) -> dict[str, Tensor]:
        """Run one stage, unless it is finished; return its result.

        Args:
            title: name of the stage.
            work: changes the state of the detector.
        """
        if title not in self.finished:
            with stage(title):
                result = work()
            self.finished[title] = {} if result is None else dict(result)
            if self.checkpoint is not None:
                self.checkpoint.write({"detector": self.detector.state_dict(), "finished": self.finished})
        return self.finished[title]

    def fit_scene(self, fit: Callable[[], float]) -> float:
        """Fit the scene, whose loop saves its own state in the same file.

        Args:
            fit: fits the scene and returns its PSNR.
        """
        if self.checkpoint is None:
            return fit()
        with checkpoint_outlives_fit():
            try:
                return fit()
            except FitCheckpointError as error:
                if not self.checkpoint.automatic:
                    raise
                self.checkpoint.reject(f"{self.checkpoint.path} belongs to another fit", error)
                return fit()


def fit_digest(model: str, settings: Mapping[str, Any], images: Tensor, cameras: Camera, masks: Tensor | None) -> str:
    """Return a hash of everything that a fit depends on.

    Args:
        model: class name of the model.
        settings: arguments of the model.
        images: RGB (C, 3, H, W).
        cameras: C cameras of the images.
        masks: masks (C, H, W), or None.
    """
    relevant = {name: value for name, value in settings.items() if name not in _IGNORED_SETTINGS}
    sizes = [list(images.shape), cameras.width, cameras.height]
    text = json.dumps([_version(), model, relevant, sizes], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for pictures in (images,) if masks is None else (images, masks[:, None]):
        digest.update(_bytes(pictures[:, :, ::7, ::7]))
        for picture in pictures:  # exact sums of all pixels, for changes between every seventh pixel
            digest.update(_bytes((picture.double() * 2**24).long().sum()))
    digest.update(_bytes(cameras.camera_to_world) + _bytes(cameras.K))
    return digest.hexdigest()[:16]


def automatic_path(results: str | Path, digest: str) -> Path:
    """Return the file of a fit beside the results of a run.

    Args:
        results: folder of the run; anomalib numbers it (``v0``), so the file lies in its parent.
        digest: see ``fit_digest``.
    """
    results = Path(results)
    folder = results.parent if _VERSIONED.fullmatch(results.name) else results
    return folder / f"fit_{digest}.ckpt"


def saved_fit(results: Path, digest: str) -> Path | None:
    """Return the model's checkpoint of an earlier run that holds the same fit; None if there is none.

    Args:
        results: folder of the run; earlier runs lie beside it.
        digest: see ``fit_digest``.
    """
    if not _VERSIONED.fullmatch(results.name):
        return None
    paths = [path for path in results.parent.glob("v*/weights/lightning/*.ckpt") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)[:_EARLIER_RUNS]:
        try:
            with anomalib_safe_globals():
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # noqa: S112 - an earlier run may leave any file
            continue
        if isinstance(content, dict) and content.get(FIT_KEY) == digest:
            return path
    return None


def open_checkpoint(setting: str, results: Path | None, digest: str) -> FitCheckpoint | None:
    """Return the checkpoint that a setting asks for.

    Args:
        setting: ``"auto"``, a path, or empty for none.
        results: folder of the run's results, or None if the run saves nothing.
        digest: see ``fit_digest``.

    Raises:
        ValueError: if the user named a file that cannot be written.
    """
    if setting == AUTOMATIC:
        return None if results is None else FitCheckpoint(automatic_path(results, digest), digest, automatic=True)
    return FitCheckpoint(check_output_file(setting), digest, automatic=False) if setting else None


def checkpoint_megabytes(detector: "SceneDetector", images: Tensor) -> float:
    """Estimate the size of a fitted model's checkpoint: stored views take most of it.

    Args:
        detector: detector to be fitted.
        images: RGB (C, 3, H, W).
    """
    pixels = images.numel() / 3e6
    return pixels * (2.5 if detector.nearby is not None else 0.3)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _version() -> str:
    try:
        return version("anomalib-pose")
    except PackageNotFoundError:
        return ""
