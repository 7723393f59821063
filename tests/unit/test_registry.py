# SPDX-License-Identifier: Apache-2.0
"""The registry of models agrees with the entry points, the public names and the classes."""

import tomllib
from pathlib import Path

import pytest
from anomalib.models.components import AnomalibModule

import anomalib_pose
from anomalib_pose import models, registry
from anomalib_pose.models.components import PoseMixin

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def test_registry_and_entry_points_agree():
    entry_points = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["anomalib.models"]
    assert entry_points == {name: f"anomalib_pose.models:{name}" for name in registry.model_names()}


def test_public_names_follow_the_registry():
    assert set(registry.model_names()) <= set(anomalib_pose.__all__)
    assert set(models.__all__) == {*registry.model_names(), "estimate_pose"}
    assert set(models.__all__) <= set(dir(models))


@pytest.mark.parametrize("model", registry.MODELS, ids=lambda model: model.name)
def test_registered_class_is_what_the_registry_says(model):
    model_class = registry.load_model(model.name)
    assert model_class is getattr(models, model.name)
    assert model_class.__module__.startswith(f"{model.module}.")
    assert AnomalibModule in model_class.__bases__, "anomalib lists direct subclasses alone"
    assert issubclass(model_class, PoseMixin) == model.is_scene_model


def test_models_are_sorted_by_name():
    assert list(registry.model_names()) == sorted(registry.model_names())


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="model should be one of Looking3D, OmniposeAD"):
        registry.load_model("Magic")
