# SPDX-License-Identifier: Apache-2.0
"""Checks of a checkpoint wherever one is loaded: its file, its model, its values and its settings."""

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomalib.utils.serialization import anomalib_safe_globals
from torch import Tensor

from anomalib_pose.models.components.checkpoint_keys import current_key
from anomalib_pose.weights import check_finite, is_state_dict, read_weights

logger = logging.getLogger(__name__)

MODEL_KEY = "anomalib_pose_model"
"""Key of a checkpoint under which the class name of its model is stored."""
MIDWAY_KEY = "anomalib_pose_midway_thresholds"
"""Key of a checkpoint whose thresholds lie midway between scores; those of older checkpoints equal a score."""

UNSET = ("post_processor.", "model.psnr", "statistics.edges")
"""Tensors that may be NaN or infinite: thresholds before a validation, PSNR without held-out views, outer bin edges."""

_FIT_SETTINGS = {
    *("steps", "recipe", "max_gaussians", "sh_degree", "bank_spacing", "holdout_every", "fit_checkpoint", "seed"),
    *("learning_rate", "beta1", "warmup_steps", "schedule", "momentum", "two_steps", "encoder_weights"),
    *("prompt_path", "prompt_length", "deep_sets", "deep_length", "paper", "paper_losses", "half_precision_prompts"),
}
"""Settings that act on the fit alone, or whose result the state of a checkpoint holds."""
_FILES = {"weights_path", "second_weights_path", "rasterizer", "point_cloud_dir"}
"""Files of networks whose weights are part of a checkpoint, and settings of the machine."""
_SWITCHES = {"surface_views", "memory_patches", "nearby_views"}
"""Numbers that act on the fit, except that 0 switches a part of the comparison off."""


def read_checkpoint(path: str | Path, model_name: str) -> dict[str, Any]:
    """Read a checkpoint without running code; the numbers of large tensors are read at their first use.

    Args:
        path: file to read.
        model_name: class name of the model, for messages.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not a checkpoint, or is incomplete.
    """
    with anomalib_safe_globals():
        checkpoint: dict[str, Any] = read_weights(path, f"a checkpoint of {model_name}", mmap=True, check=False)
    check_content(checkpoint, str(path))
    return checkpoint


def check_content(checkpoint: Any, source: str) -> None:
    """Refuse the content of a file that is no checkpoint.

    Args:
        checkpoint: content of the file.
        source: name of the file, for messages.

    Raises:
        ValueError: if there is no state dict.
    """
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not is_state_dict(state):
        msg = f"{source} should be a checkpoint that `anomalib train` wrote, but has no state_dict of tensors."
        raise ValueError(msg)


def check_version(checkpoint: Mapping[str, Any], source: str) -> None:
    """Refuse tensors that Lightning did not write, and could not load.

    Args:
        checkpoint: content of the file.
        source: name of the file, for messages.

    Raises:
        ValueError: if the content names no version of Lightning.
    """
    if "pytorch-lightning_version" not in checkpoint:  # Lightning asks for it without a check
        msg = f"{source} should be a checkpoint that `anomalib train` wrote, but holds the tensors alone."
        raise ValueError(msg)


def check_model(checkpoint: Mapping[str, Any], model_class: type, source: str) -> None:
    """Refuse the checkpoint of another model.

    Checkpoints of version 0.1 do not name their model. Their hyper-parameters then identify it.

    Args:
        checkpoint: Lightning's checkpoint.
        model_class: class of the model that loads it.
        source: file name of the checkpoint, for messages.

    Raises:
        ValueError: if the checkpoint belongs to another model.
    """
    owner = checkpoint.get(MODEL_KEY)
    name = model_class.__name__
    if owner is not None and owner not in {base.__name__ for base in model_class.__mro__}:
        msg = f"{source} is a checkpoint of {owner}, not of {name}: give --model {owner}, or a checkpoint of {name}."
        raise ValueError(msg)
    saved = {*checkpoint.get("hyper_parameters", {})}
    known = saved & {*inspect.signature(model_class).parameters}
    if owner is None and saved - known and len(saved - known) >= len(known):
        unknown = ", ".join(sorted(map(str, saved - known))[:3])
        msg = f"{source} is no checkpoint of {name}: it has settings that {name} does not have, such as {unknown}."
        raise ValueError(msg)


def check_values(checkpoint: Mapping[str, Any], source: str) -> None:
    """Refuse a checkpoint with tensors that are NaN or infinite, for example of a fit that diverged.

    Args:
        checkpoint: Lightning's checkpoint.
        source: file name of the checkpoint, for messages.

    Raises:
        ValueError: if a value is not finite.
    """
    for part in checkpoint.values():  # PointAD's prompts are beside the state dict
        if is_state_dict(part):
            check_finite(part, source, unset=UNSET)


def differing_settings(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint that differ from those of the model that loads it.

    Args:
        own: settings of the model.
        saved: settings of the checkpoint.
    """
    return {name: value for name, value in saved.items() if name in own and not _equal(own[name], value)}


def _equal(first: Any, second: Any) -> bool:
    """Compare two settings; files hold tuples as lists, and paths as text."""
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return [*first] == [*second]
    return bool(first == second) or str(first) == str(second)


def warn_about_defaults(model_class: type, own: Mapping[str, Any], saved: Mapping[str, Any], source: str) -> None:
    """Warn of settings that act after the fit, if the model has their defaults and the checkpoint has not.

    Lightning loads only the state of a checkpoint into a model that exists, so `test` and `predict` use the settings of
    the command line.

    Args:
        model_class: class of the model.
        own: settings of the model.
        saved: settings of the checkpoint.
        source: file name of the checkpoint, for the message.
    """
    parameters = inspect.signature(model_class).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    differing = {
        name: value
        for name, value in differing_settings(own, saved).items()
        if name not in _FIT_SETTINGS | _FILES
        and _equal(own[name], defaults.get(name))
        and not (name in _SWITCHES and bool(own[name]) == bool(value))
    }
    if differing:
        used = ", ".join(f"{name}={own[name]!r}" for name in differing)
        logger.warning(
            "%s was written with other settings than the defaults %s that this run uses. To use them, give %s.",
            source, used, _flags(differing),
        )  # fmt: skip


def missing_flags(model: Any, saved: Mapping[str, Any]) -> str:
    """Return the settings of a checkpoint that a model lacks as arguments of the command line; empty for none.

    Args:
        model: Lightning module with ``hparams``.
        saved: settings of the checkpoint.
    """
    differing = differing_settings(model.hparams, saved)
    flags = {setting: value for setting, value in differing.items() if setting not in _FIT_SETTINGS | _FILES}
    return _flags(flags or differing)


def mismatch(model: Any, state_dict: Mapping[str, Tensor], saved: Mapping[str, Any], source: str) -> str:
    """Return a sentence that says why a state dict does not fit a model, with the flags to add.

    Args:
        model: Lightning module with ``hparams``.
        state_dict: state of the checkpoint.
        saved: settings of the checkpoint.
        source: file name of the checkpoint.
    """
    name = type(model).__name__
    own_state = model.state_dict()
    faulty = sorted({*own_state} ^ {current_key(key) for key in state_dict})
    flags = missing_flags(model, saved)
    if flags:
        return f"{source} does not fit this {name}, which has other settings: give {flags}."
    if not {*own_state} - {key for key in own_state if key.startswith("post_processor.")} - {*faulty}:
        return f"{source} is no checkpoint of {name}: none of its tensors belongs to {name}."
    first = f"{faulty[0]!r} is missing or unknown" if faulty else "shapes differ"
    return f"{source} does not match this version of {name}, because {first}: fit the object again."


def _flags(settings: Mapping[str, Any]) -> str:
    """Return settings as arguments of anomalib's command line."""
    return " ".join(f"--model.{name} {_word(value)}" for name, value in settings.items())


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value if value and not set(value) & set(" '\"\t") else json.dumps(value)
    return json.dumps([*value] if isinstance(value, tuple) else value, default=str)
