# SPDX-License-Identifier: Apache-2.0
"""Parts of a run that check its checkpoint: the reader of checkpoint files, and a callback before the first query."""

from collections.abc import Callable
from typing import Any

from anomalib.engine.plugins import AnomalibCheckpointIO
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_pose.models.components.checkpoint_checks import check_content, check_version, read_checkpoint
from anomalib_pose.models.components.datamodule_checks import KINDS
from anomalib_pose.storage import no_space


class CheckedCheckpointIO(AnomalibCheckpointIO):
    """Reader of checkpoint files that names what is wrong with a file, instead of advising to run its code."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint; see anomalib for the arguments.

        Args:
            path: file to read.
            args: see anomalib.
            kwargs: see anomalib.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the file is not a checkpoint, or is incomplete.
        """
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        except (MemoryError, PermissionError):
            raise
        except Exception:
            if "://" not in str(path):
                read_checkpoint(path, "a model")  # raises the sentence
            raise
        check_content(checkpoint, str(path))
        check_version(checkpoint, str(path))
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint; see anomalib for the arguments.

        Args:
            checkpoint: content of the file.
            path: file to write.
            args: see anomalib.
            kwargs: see anomalib.

        Raises:
            OSError: with the name of the file, if the disk is full.
        """
        try:
            super().save_checkpoint(checkpoint, path, *args, **kwargs)
        except OSError as error:  # names the temporary file
            if no_space(error):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


def use_checked_reader(trainer: Trainer) -> None:
    """Make a trainer read checkpoints by ``CheckedCheckpointIO``; a reader that a user has chosen stays.

    Args:
        trainer: trainer of the run.
    """
    reader = trainer.strategy.checkpoint_io
    if type(reader) in (AnomalibCheckpointIO, TorchCheckpointIO):
        trainer.strategy.checkpoint_io = CheckedCheckpointIO(getattr(reader, "extra_safe_globals", None))


def check_run(trainer: Trainer, model_name: str, kind_name: str) -> None:
    """Refuse a run without data, and a precision in which the scene models do not compute, before any work.

    Args:
        trainer: trainer of the run.
        model_name: class name of the model.
        kind_name: key of ``KINDS``.

    Raises:
        ValueError: if the run has no data, or another precision than 32-true.
    """
    kind = KINDS[kind_name]
    stage = trainer.state.fn
    loop = None if stage is None else getattr(trainer, f"{'fit' if stage == 'fit' else stage.value}_loop", None)
    source = getattr(loop, "_data_source", None)
    if source is not None and not source.is_defined():
        verb = "learns from" if stage == "fit" else "scores"
        msg = f"{model_name} {verb} {kind.description}, but the run has no data: give --data {kind.names}."
        raise ValueError(msg)
    if kind_name == "posed" and trainer.precision not in ("32-true", "32", 32):
        msg = f"{model_name} computes in float32: give --trainer.precision 32-true, not {trainer.precision}."
        raise ValueError(msg)


class CheckFitted(Callback):
    """Call a check of the model before the first query of a validation, a test or a prediction.

    Args:
        check: raises if the model cannot score queries.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model, except between the epochs of a training.

        Args:
            trainer: trainer of the run.
            pl_module: not used.
        """
        del pl_module
        if trainer.state.fn != "fit":
            self.check()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model.

        Args:
            trainer: not used.
            pl_module: not used.
        """
        del trainer, pl_module
        self.check()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the model.

        Args:
            trainer: not used.
            pl_module: not used.
        """
        del trainer, pl_module
        self.check()
