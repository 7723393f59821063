# SPDX-License-Identifier: Apache-2.0
"""Checks of a model's settings together: ranges, and settings that have no effect or contradict each other.

A setting without effect is refused only if it differs from its default. A default is never refused. Numbers that
documented choices ignore are only reported, because commands for several models share them; an example is
``refiner_steps`` of ``"gauss_newton"``.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from anomalib_pose.pose import MatcherName

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]

_CALIBRATED = ("calibrated", "illumination")
"""Comparators that learn from normal views."""

RANGES: dict[str, tuple[float, float]] = {
    "beta1": (0, 1),
    "momentum": (0, 1),
    "warmup_steps": (0, math.inf),
}
"""Smallest and largest value of Looking3D's numbers; ``setting_checks`` has those of the scene models."""


@dataclass(frozen=True)
class Rule:
    """A setting that works only with certain values of another one.

    Args:
        setting: setting that would have no effect.
        other: setting that decides.
        works: whether the setting works with these settings.
        needed: value of ``other`` that is needed, for the message.
        off: value of ``setting`` that switches it off, besides its default.
        refused: whether the setting is refused; else it is reported.
    """

    setting: str
    other: str
    works: Callable[[Settings], bool]
    needed: str
    off: Any = ""
    refused: bool = True


def _equals(name: str, *values: Any) -> Callable[[Settings], bool]:
    return lambda settings: settings[name] in values


def _given(name: str) -> Callable[[Settings], bool]:
    return lambda settings: bool(settings[name])


def _has_matcher_weights(settings: Settings) -> bool:
    """Return whether the matcher has its file; an unknown matcher has, for its name is refused instead."""
    return bool(settings["matcher_weights"]) or settings["matcher"] not in get_args(MatcherName)


def _has_network(settings: Settings) -> bool:
    """Return whether the first network exists: papers' comparators have a default network."""
    return bool(settings["backbone"]) or settings["comparator"] not in _CALIBRATED


def _only(scorings: tuple[str, ...], *settings: str, refused: bool = True) -> list[Rule]:
    """Rules of settings that act with some values of PointAD's ``scoring``."""
    needed = "scoring " + " or ".join(map(repr, scorings))
    works = _equals("scoring", *scorings)
    return [Rule(name, "scoring", works, needed, refused=refused) for name in settings]


_LEARNED = ("prompt_length", "deep_sets", "deep_length", "learning_rate")
RULES = [
    Rule("refine_focal", "refiner", _equals("refiner", "gauss_newton"), "the refiner 'gauss_newton'"),
    Rule(
        "refiner_steps", "refiner", lambda s: s["refiner"] != "gauss_newton", "another refiner than 'gauss_newton'",
        refused=False,
    ),
    Rule("matcher", "matcher_weights", _has_matcher_weights, "matcher_weights, the file of its weights"),
    Rule("matcher_weights", "matcher", _given("matcher"), "a matcher"),
    Rule("weights_path", "backbone", lambda s: "comparator" not in s or _has_network(s), "a backbone"),
    Rule("second_weights_path", "second_backbone", _given("second_backbone"), "a second_backbone"),
    Rule("second_backbone", "comparator", _equals("comparator", *_CALIBRATED), "a comparator with two networks"),
    Rule("memory_patches", "comparator", _equals("comparator", *_CALIBRATED), "a calibrated comparator", 0),
    Rule("memory_patches", "backbone", _has_network, "a backbone", 0),
    Rule(
        "surface_views", "comparator", _equals("comparator", *_CALIBRATED), "a calibrated comparator", 0,
        refused=False,
    ),
    Rule("surface_strength", "surface_views", _given("surface_views"), "surface_views above 0"),
    Rule(
        "reflectance_weights_path", "comparator", _equals("comparator", "illumination", "product"),
        "the comparator 'illumination' or 'product'",
    ),
    Rule("max_gaussians", "recipe", _equals("recipe", "default"), "the recipe 'default'", refused=False),
    Rule("mask_dir", "reference", _given("reference"), "a reference"),
    Rule("encoder_weights", "weights_path", lambda s: not s["weights_path"], "an empty weights_path"),
    *_only(("prompts",), "prompt_path", "paper", *_LEARNED, refused=False),
    *_only(("prompts", "ensemble"), "clip_model", "pretrained", "vv_blocks"),
    *_only(("ensemble",), "object_word"),
    *_only(("mutual",), "backbone", "weights_path", "layers", "neighbourhoods", "share", "windows"),
    *_only(("mutual",), "foreground_only", "centred"),
    *(
        Rule(name, "prompt_path", lambda s: not s["prompt_path"], "an empty prompt_path", refused=False)
        for name in _LEARNED
    ),
]  # fmt: skip

_loaded_with: ContextVar[frozenset[str] | None] = ContextVar("loaded_with", default=None)


@contextmanager
def settings_of_a_checkpoint(changes: Settings) -> Iterator[None]:
    """Check only changed settings while a checkpoint is loaded, so that checkpoints of earlier versions load.

    Args:
        changes: settings that replace those in the checkpoint.
    """
    token = _loaded_with.set(frozenset(changes))
    try:
        yield
    finally:
        _loaded_with.reset(token)


def check_rules(model_class: type, settings: Settings) -> None:
    """Refuse settings that are out of range, have no effect, or contradict each other.

    Args:
        model_class: class of the model; its signature has the defaults.
        settings: arguments of the model.

    Raises:
        ValueError: if a setting is refused; the message names both settings.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(model_class).parameters.items()}
    changes = _loaded_with.get()
    checked = set(settings) if changes is None else changes & set(settings)
    for name in sorted(checked):
        _check_number(model_class.__name__, name, settings[name])
    for rule in RULES:
        names = {rule.setting, rule.other}
        if not names <= set(settings) or not names & checked:
            continue
        value = settings[rule.setting]
        is_default = value in (rule.off, defaults.get(rule.setting)) or _same(value, defaults.get(rule.setting))
        if not is_default and not rule.works(settings):
            msg = (
                f"{model_class.__name__}'s {rule.setting}={value!r} needs {rule.needed}, got "
                f"{rule.other}={settings[rule.other]!r}."
            )
            if rule.refused:
                raise ValueError(msg)
            _report(msg)


@cache
def _report(message: str) -> None:
    """Log once that a setting has no effect."""
    logger.warning("A setting has no effect: %s", message)


def _same(value: Any, default: Any) -> bool:
    """Compare two settings; the command line gives lists for tuples."""
    return isinstance(value, list | tuple) and isinstance(default, list | tuple) and [*value] == [*default]


def _check_number(model_name: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, float) and not math.isfinite(value):
        msg = f"{model_name}'s {name} should be a finite number, got {value}."
        raise ValueError(msg)
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if not low <= value <= high:
        limits = f"{low:g} or more" if high == math.inf else f"in [{low:g}, {high:g}]"
        msg = f"{model_name}'s {name} should be {limits}, got {value}."
        raise ValueError(msg)
