# SPDX-License-Identifier: Apache-2.0
"""Fit of a scene model inside a Lightning run, with checks before it and a checkpoint to continue from."""

import logging
import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.models.components.autograd import test_time_grad
from anomalib_pose.models.components.fit_resume import (
    AUTOMATIC,
    FIT_KEY,
    FitCheckpoint,
    checkpoint_megabytes,
    fit_digest,
    open_checkpoint,
    saved_fit,
)
from anomalib_pose.models.components.query_batches import training_format
from anomalib_pose.models.components.run_report import ReportMixin, results_folder, retest_command, saved_checkpoint
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.models.components.scene_fit import FitScene
from anomalib_pose.models.components.view_checks import check_views
from anomalib_pose.models.components.view_collection import ViewCollection
from anomalib_pose.storage import check_output_file, check_output_folder, remove_leftovers

logger = logging.getLogger(__name__)

_FIT_FILE = re.compile(r"fit_[0-9a-f]{16}\.ckpt")
_WEEK = 7 * 24 * 3600.0


class FitRunMixin(ReportMixin):
    """Fits a ``SceneDetector`` to the views that training steps have collected in ``_views``."""

    model: SceneDetector
    device: torch.device
    trainer: Any
    hparams: Any
    fit_scene: Callable[[], FitScene]
    fit_checkpoint_setting: str = ""
    """``"auto"``, a path, or empty; see ``SceneModelMixin``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._views = ViewCollection()
        self._resume: FitCheckpoint | None = None
        self._fit_digest = ""

    @property
    def fit_checkpoint(self) -> str | None:
        """File from which the fit that has begun continues, or None."""
        return None if self._resume is None else str(self._resume.path)

    def check_outputs(self, megabytes: float = 0.0) -> None:
        """Check that the run can write what it will write, before hours of work.

        Args:
            megabytes: estimated size of the model's checkpoint.

        Raises:
            ValueError: if a folder or file cannot be written, or its disk has too little space.
        """
        if self.fit_checkpoint_setting not in ("", AUTOMATIC):
            check_output_file(self.fit_checkpoint_setting)
        if results_folder(self.trainer) is not None:
            check_output_folder(self.trainer.checkpoint_callback.dirpath or self.trainer.default_root_dir, megabytes)

    def fit(self) -> None:
        """Fit the scene to the collected views, then discard them.

        Raises:
            ValueError: if there are no views, their sizes differ, or the results cannot be written.
        """
        if not len(self._views):
            msg = f"{type(self).__name__} has no training views: train it first, or give a checkpoint."
            raise ValueError(msg)
        self.report.end_reading()
        check_views(self._views.views)
        with test_time_grad(), self.reported():
            images, cameras, foreground = self._views.stack(self.device)
            self._resume = self._open_checkpoint(images, cameras, foreground)
            self.model.fit(images, cameras, foreground, self.fit_scene(), self._resume)
        self.model.query_cameras.store(training_format(self.trainer, (cameras.width, cameras.height)))
        self._views = ViewCollection()
        logger.info("The view bank of the pose search has %d views.", len(self.model.bank))

    def _open_checkpoint(self, images: Tensor, cameras: Camera, masks: Tensor | None) -> FitCheckpoint | None:
        """Return the checkpoint of this fit, after a check of the disk and a clean-up beside it."""
        self.check_outputs(checkpoint_megabytes(self.model, images))
        digest = fit_digest(type(self).__name__, dict(self.hparams), images, cameras, masks)
        self._fit_digest = digest
        folder = results_folder(self.trainer)
        checkpoint = open_checkpoint(self.fit_checkpoint_setting, folder, digest)
        earlier = None if folder is None or checkpoint is None else saved_fit(folder, digest)
        if checkpoint is not None and earlier is not None and not checkpoint.path.is_file():
            command = retest_command(self, earlier)
            logger.info("%s holds the same fit, which is now repeated. To test it instead: %s", earlier, command)
        if checkpoint is not None:
            remove_leftovers(checkpoint.path.parent)
            _review_other_fits(checkpoint)
        return checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the hash of the fit, so that a repeated run can name the checkpoint."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        if self._fit_digest:
            checkpoint[FIT_KEY] = self._fit_digest

    def on_train_end(self) -> None:
        """Remove the checkpoint of the fit as soon as that of the model is saved."""
        if self._resume is not None and (results_folder(self.trainer) is None or saved_checkpoint(self.trainer)):
            self._resume.remove()
            self._resume = None


def _review_other_fits(checkpoint: FitCheckpoint) -> None:
    """Log the checkpoints of other interrupted fits beside an automatic one, and remove those older than a week."""
    if not checkpoint.automatic or not checkpoint.path.parent.is_dir():
        return
    for path in sorted(checkpoint.path.parent.iterdir()):
        if not _FIT_FILE.fullmatch(path.name) or path == checkpoint.path:
            continue
        if time.time() - path.stat().st_mtime > _WEEK:
            path.unlink(missing_ok=True)
            logger.info("Removed %s, the checkpoint of a fit that was interrupted more than a week ago.", path)
        else:
            logger.info("%s is not used: it belongs to a fit of other images or with other settings.", path)
