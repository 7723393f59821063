# SPDX-License-Identifier: Apache-2.0
"""What a run prints at its end: seconds of its stages, metrics with units, and the next command."""

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from rich import get_console
from rich.table import Table

from anomalib_pose.progress import StageTime, print_table, record_stages, show_progress, stage_table
from anomalib_pose.storage import check_output_folder, remove_leftovers

logger = logging.getLogger(__name__)

_UNITS = {
    "pose_MedianAngleError": "degrees",
    "pose_MedianCentreError": "scene units",
    "pose_PosesWithinOneDegree": "fraction of queries",
    "seconds_per_query": "s",
}
_EXPORT_MEGABYTES = 100.0  # most detectors have 20 to 100 MB
_FIT_ONLY = ("steps", "fit_checkpoint", "holdout_every")


class RunReport(Callback):
    """Prints a table of stages and seconds at the end of a fit and of a test, and a table of metrics after a test.

    A model returns it from ``configure_callbacks``. Stages that the model times itself are added to ``stages``. Tables
    of stages appear where the trainer shows progress bars. The table of metrics replaces that of Lightning.
    """

    def __init__(self) -> None:
        self.stages: list[StageTime] = []
        self._run_start = self._reading_start = self._part_start = 0.0
        self._queries = 0
        self._replaces_table = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the folder of the results, and start the record; a test that follows a fit continues its record.

        Args:
            trainer: trainer of the run.
            pl_module: not used.
            stage: Lightning's name of the stage that starts.

        Raises:
            ValueError: if a fit cannot write its results.
        """
        del pl_module
        if stage == "fit" and results_folder(trainer) is not None:
            check_output_folder(trainer.checkpoint_callback.dirpath or trainer.default_root_dir)
        if stage == "fit" or not self._run_start:
            self.stages.clear()
            self._run_start = time.perf_counter()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start to time the reading of the training views."""
        del trainer, pl_module
        self._reading_start = time.perf_counter()

    def end_reading(self, title: str = "Read the training views") -> None:
        """Record the time since the training began, before the fit itself.

        Args:
            title: title of the stage.
        """
        if self._reading_start:
            self.stages.append(StageTime(title, time.perf_counter() - self._reading_start))
            self._reading_start = 0.0

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the training of a model without a fit of its own."""
        del trainer, pl_module
        self.end_reading("Train")

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start to time a validation, whose fit is over."""
        del trainer, pl_module
        self._part_start, self._queries = time.perf_counter(), 0

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        """Count the queries."""
        del trainer, pl_module, outputs, args
        self._queries += len(batch.image)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Record a validation."""
        del trainer, pl_module
        self._record_part("Validate")

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the stages of a fit."""
        if _shows_tables(trainer):
            self._print_stages(pl_module)
        # a test that follows gets one row for all this
        self.stages[:] = [StageTime("Fit and validate", time.perf_counter() - self._run_start)]

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Replace Lightning's table of metrics."""
        del pl_module
        loop = trainer.test_loop
        self._replaces_table = bool(loop.verbose) and bool(trainer.is_global_zero)
        if self._replaces_table:
            loop.verbose = False  # Lightning would print the same figures with sixteen digits

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Start to time a test, whose preparation is over."""
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        """Count the queries."""
        self.on_validation_batch_end(trainer, pl_module, outputs, batch, *args)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Print metrics, stages and the next command."""
        self._record_part("Test")
        if self._replaces_table:
            if trainer.callback_metrics:
                print_table(metrics_table(trainer.callback_metrics), pl_module.print)
            if _shows_tables(trainer):
                self._print_stages(pl_module)
            self._run_start = 0.0
            checkpoint = saved_checkpoint(trainer) or trainer.ckpt_path
            if checkpoint:
                pl_module.print("\n".join(next_commands(pl_module, checkpoint)))

    def _record_part(self, title: str) -> None:
        self.stages.append(StageTime(f"{title} {self._queries} queries", time.perf_counter() - self._part_start))

    def _print_stages(self, pl_module: Any) -> None:
        """Print the stages, and the time since the run began."""
        print_table(stage_table(self.stages, time.perf_counter() - self._run_start), pl_module.print)


class ReportMixin:
    """Gives an ``AnomalibModule`` a report of its runs."""

    _trainer: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.report = RunReport()

    @property
    def shows_progress(self) -> bool:
        """Whether the trainer shows progress bars; the model then shows bars too."""
        return getattr(self._trainer, "progress_bar_callback", None) is not None

    def configure_callbacks(self) -> Any:
        """Add the report of the run to anomalib's callbacks."""
        return [*super().configure_callbacks(), self.report]  # type: ignore[misc]

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Show the bars of all stages inside the block, if the trainer shows bars, and record their seconds."""
        with show_progress(self.shows_progress), record_stages(self.report.stages):
            yield


@contextmanager
def export_run(export_root: str | Path) -> Iterator[None]:
    """Check the folder of an export, show the bars of its stages, and print their seconds at its end.

    Args:
        export_root: folder that the export is written to.

    Raises:
        ValueError: if the folder cannot be written, or its disk has too little space.
    """
    remove_leftovers(check_output_folder(export_root, _EXPORT_MEGABYTES))
    start = time.perf_counter()
    with show_progress(), record_stages() as stages:
        yield
    get_console().print(stage_table(stages, time.perf_counter() - start))


def metrics_table(metrics: dict[str, Any]) -> Table:
    """Return a table of metrics with units and four digits.

    Args:
        metrics: values by name.
    """
    table = Table("Metric", box=None)
    table.add_column("Value", justify="right")
    table.add_column("Unit")
    for name, value in sorted(metrics.items()):
        number = float(value)
        digits = f"{number:.4f}" if abs(number) < 10 else f"{number:.1f}"
        table.add_row(name, digits, _UNITS.get(name, ""))
    return table


def next_commands(model: Any, checkpoint: str | Path) -> list[str]:
    """Return the commands that use a checkpoint, with the arguments of the model that differ from their defaults.

    Args:
        model: fitted model.
        checkpoint: its checkpoint.
    """
    name = type(model).__name__
    return [
        f"Predict:  anomalib predict {_model_arguments(model, checkpoint)} --data FOLDER",
        f"Export:   anomalib export --model {name} --ckpt_path {_shown_path(checkpoint)} --export_type openvino",
    ]


def retest_command(model: Any, checkpoint: str | Path) -> str:
    """Return the command that tests a checkpoint, without the arguments of the data.

    Args:
        model: model with the settings of the checkpoint.
        checkpoint: its checkpoint.
    """
    return f"anomalib test {_model_arguments(model, checkpoint)} and the same --data arguments"


def _model_arguments(model: Any, checkpoint: str | Path) -> str:
    arguments = "".join(f" --model.{key} {shlex.quote(str(value))}" for key, value in _changed_settings(model).items())
    return f"--model {type(model).__name__}{arguments} --ckpt_path {_shown_path(checkpoint)}"


def _shown_path(checkpoint: str | Path) -> str:
    """Return a path for a command line, relative to the working folder if it lies there."""
    path = Path(checkpoint)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


def results_folder(trainer: Any) -> Path | None:
    """Return the folder of a run's results; None if the run saves no checkpoint.

    Args:
        trainer: trainer of a model.
    """
    saves = trainer.checkpoint_callback is not None and not trainer.fast_dev_run
    return Path(trainer.default_root_dir) if saves else None


def saved_checkpoint(trainer: Any) -> str:
    """Return the checkpoint that the trainer has saved; empty if there is none.

    Args:
        trainer: trainer of a model.
    """
    callback = trainer.checkpoint_callback
    path = "" if callback is None else str(callback.best_model_path or getattr(callback, "last_model_path", ""))
    return path if path and Path(path).is_file() else ""


def _changed_settings(model: Any) -> dict[str, Any]:
    """Return the arguments of a model that differ from their defaults and matter after the fit."""
    import inspect

    parameters = inspect.signature(type(model)).parameters
    return {
        key: value
        for key, value in dict(model.hparams).items()
        if key in parameters and key not in _FIT_ONLY and value != parameters[key].default
    }


def _shows_tables(trainer: Any) -> bool:
    return bool(trainer.is_global_zero) and trainer.progress_bar_callback is not None
