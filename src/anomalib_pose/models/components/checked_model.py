# SPDX-License-Identifier: Apache-2.0
"""Checks that all models share: data and checkpoint before a run, the content of checkpoints, and thresholds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from anomalib_pose.deploy.thresholds import use_midway_thresholds
from anomalib_pose.models.components.checkpoint_checks import (
    MIDWAY_KEY,
    MODEL_KEY,
    UNSET,
    check_model,
    check_values,
    check_version,
    mismatch,
    missing_flags,
    read_checkpoint,
    warn_about_defaults,
)
from anomalib_pose.models.components.datamodule_checks import check_datamodule
from anomalib_pose.models.components.run_checks import CheckFitted, check_run, use_checked_reader
from anomalib_pose.models.components.setting_rules import check_rules, settings_of_a_checkpoint
from anomalib_pose.storage import check_output_folder
from anomalib_pose.weights import check_finite


class CheckedModelMixin:
    """Checks of an ``AnomalibModule``, which the class inherits from after this one."""

    data_kind: ClassVar[str]
    """Kind of data that the model uses, a key of ``datamodule_checks.KINDS``."""
    model: Any
    post_processor: Any
    hparams: Any
    _trainer: Any = None
    _checkpoint_settings: Mapping[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_rules(type(self), self.hparams)
        use_midway_thresholds(self.post_processor)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model from its checkpoint; see ``AnomalibModule.load_from_checkpoint`` for the arguments.

        Args:
            checkpoint_path: checkpoint that anomalib wrote.
            args: see anomalib.
            kwargs: see anomalib; arguments of the model replace those in the checkpoint.

        Raises:
            FileNotFoundError: if the file does not exist.
            ValueError: if the file is not a checkpoint of this model, is incomplete, or has values that are not finite.
        """
        if isinstance(checkpoint_path, str | Path) and "://" not in str(checkpoint_path):
            checkpoint = read_checkpoint(checkpoint_path, cls.__name__)
            check_model(checkpoint, cls, str(checkpoint_path))
            check_version(checkpoint, str(checkpoint_path))
        with settings_of_a_checkpoint(kwargs):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)  # type: ignore[misc]

    def setup(self, stage: str) -> None:
        """Check the datamodule before a run starts, and prepare checks of checkpoint files.

        Args:
            stage: Lightning's name of the stage that starts.

        Raises:
            ValueError: if the datamodule is of another kind.
        """
        super().setup(stage)  # type: ignore[misc]
        if self._trainer is not None:
            check_datamodule(type(self).__name__, self.data_kind, getattr(self._trainer, "datamodule", None), stage)
            use_checked_reader(self._trainer)

    def configure_callbacks(self) -> list[Any]:
        """Return anomalib's callbacks, and one that checks the model before the first query.

        Raises:
            ValueError: if the run has no data, or a precision in which the model does not compute.
        """
        if self._trainer is not None:
            check_run(self._trainer, type(self).__name__, self.data_kind)
        return [CheckFitted(self.check_fitted), *super().configure_callbacks()]  # type: ignore[misc]

    def check_fitted(self) -> None:
        """Refuse a model that is not fitted, or whose fit has diverged.

        Raises:
            ValueError: if the model is not fitted, or a value of its state is NaN or infinite.
        """
        bank = getattr(self.model, "bank", None)
        if bank is not None and not len(bank):
            msg = f"The {type(self).__name__} is not fitted: train it first, or give its checkpoint by --ckpt_path."
            raise ValueError(msg)
        check_finite(self.state_dict(), f"The {type(self).__name__}", unset=UNSET)  # type: ignore[attr-defined]

    def to_torch(self, export_root: Path | str, *args: Any, **kwargs: Any) -> Path:
        """Write the model as anomalib does, if it is fitted; see ``AnomalibModule.to_torch`` for the arguments.

        Args:
            export_root: folder to write to.
            args: see anomalib.
            kwargs: see anomalib.

        Raises:
            ValueError: if the model is not fitted, a value of its state is NaN or infinite, or the folder cannot be
                written.
        """
        self.check_fitted()
        check_output_folder(export_root, self._megabytes())
        path: Path = super().to_torch(export_root, *args, **kwargs)  # type: ignore[misc]
        return path

    def _megabytes(self) -> float:
        """Return the size of the state."""
        tensors = self.state_dict().values()  # type: ignore[attr-defined]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor)) / 1e6

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the class name of the model, and that its thresholds lie midway between scores."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint[MODEL_KEY] = type(self).__name__
        checkpoint[MIDWAY_KEY] = bool(getattr(self.post_processor, "thresholds_are_midway", False))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the model and the values of a checkpoint, and warn of settings that fall back to defaults.

        Raises:
            ValueError: if the checkpoint belongs to another model, or holds values that are NaN or infinite.
        """
        source = self._checkpoint_name()
        check_model(checkpoint, type(self), source)
        check_values(checkpoint, source)
        self._checkpoint_settings = dict(checkpoint.get("hyper_parameters", {}))
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        if self.post_processor:
            self.post_processor.thresholds_are_midway = bool(checkpoint.get(MIDWAY_KEY, False))
        if self._trainer is not None:  # load_from_checkpoint uses the settings of the checkpoint
            warn_about_defaults(type(self), self.hparams, self._checkpoint_settings, source)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict; if it does not fit, name the settings that differ instead of hundreds of tensors.

        Args:
            state_dict: state of a checkpoint.
            args: see PyTorch.
            kwargs: see PyTorch.

        Raises:
            ValueError: if names or shapes of tensors differ.
        """
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]
        except (RuntimeError, ValueError) as error:  # PyTorch lists every tensor
            if isinstance(error, ValueError) and not missing_flags(self, self._checkpoint_settings):
                raise
            msg = mismatch(self, state_dict, self._checkpoint_settings, self._checkpoint_name())
            raise ValueError(msg) from None

    def _checkpoint_name(self) -> str:
        """Return the file name of the checkpoint that is being loaded, for messages."""
        return str(getattr(self._trainer, "ckpt_path", None) or "The checkpoint")
