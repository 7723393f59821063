# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments of the scene models on the command line, in checkpoints and in Python."""

import inspect
from typing import get_args

import pytest
import torch
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentParser

from anomalib_pose.models import PIAD, OmniposeAD, SplatPose
from anomalib_pose.models.components.scene_model import SceneModelMixin
from anomalib_pose.scene import is_reflective
from sample_models import make_fitted, save_checkpoint
from sample_scenes import make_toy, with_reflectance

COMPONENTS = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), True)
SHARED = {
    "steps": 3000,
    "refiner": "gauss_newton",
    "refiner_steps": 300,
    "starts": 3,
    "bank_spacing": 8.0,
    "rolls": 1,
    "refine_focal": False,
    "matcher": "",
    "matcher_weights": "",
    "comparator": "calibrated",
    "backbone": "",
    "weights_path": "",
    "second_backbone": "",
    "second_weights_path": "",
    "holdout_every": 10,
    "surface_views": 120,
    "memory_patches": 1000,
    "fit_checkpoint": "auto",
    "seed": 0,
    **COMPONENTS,
}
GAUSSIANS = {"recipe": "default", "max_gaussians": 20_000, "sh_degree": 2, "rasterizer": "auto"}
DEFAULTS = {
    SplatPose: {**SHARED, **GAUSSIANS, "refiner_steps": 175, "nearby_views": 3},
    OmniposeAD: {**SHARED, "field": "grid", "nearby_views": 3},
    PIAD: {
        **SHARED,
        **GAUSSIANS,
        "comparator": "illumination",
        "reflectance_weights_path": "",
        "surface_strength": 0.5,
        "memory_patches": 0,
        "relight": True,
    },
}
CHOICES = {
    "recipe": ("default", "paper"),
    "field": ("grid", "mlp"),
    "refiner": ("gauss_newton", "adam", "inerf", "reflectance"),
    "matcher": ("", "aliked", "xfeat", "loftr"),
    "comparator": ("calibrated", "illumination", "paper", "product"),
    "rasterizer": ("auto", "cpu", "gsplat"),
}

for_each_model = pytest.mark.parametrize("model_class", DEFAULTS, ids=lambda model_class: model_class.__name__)


@for_each_model
def test_command_line_has_every_argument_with_default_type_and_help(model_class):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(model_class, "model")
    actions = {action.dest.removeprefix("model."): action for action in parser._actions if "." in action.dest}
    actions = {name: action for name, action in actions.items() if not name.endswith(".help")}
    assert {name: action.default for name, action in actions.items()} == DEFAULTS[model_class]
    for name, action in actions.items():
        assert action.help, f"{name} has no help text"
        if name in CHOICES:
            assert get_args(action._typehint) == CHOICES[name]
        elif name not in COMPONENTS:
            assert (getattr(action, "_typehint", None) or action.type) is type(DEFAULTS[model_class][name])


@for_each_model
def test_checkpoints_contain_every_argument_and_load(model_class, tmp_path):
    model = model_class(seed=4, rolls=2)
    expected = {name: value for name, value in DEFAULTS[model_class].items() if name not in COMPONENTS}
    expected |= {"seed": 4, "rolls": 2}
    assert dict(model.hparams) == expected
    path = save_checkpoint(model, tmp_path / "model.ckpt")
    assert torch.load(path, weights_only=True)["hyper_parameters"] == expected
    loaded = model_class.load_from_checkpoint(path, map_location="cpu", starts=1)
    assert dict(loaded.hparams) == {**expected, "starts": 1}
    assert (loaded.seed, loaded.model.bank.rolls, loaded.model.estimator.starts) == (4, 2, 1)


@pytest.mark.parametrize(
    ("name", "value", "warnings"),
    [("reflectance", False, 0), ("reflectance", True, 1)],
)
def test_old_checkpoint_with_a_removed_argument_loads(name, value, warnings, tmp_path, caplog):
    path = save_checkpoint(make_fitted(PIAD), tmp_path / "model.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"][name] = value
    torch.save(checkpoint, path)
    loaded = PIAD.load_from_checkpoint(path, map_location="cpu")
    assert name not in loaded.hparams
    assert caplog.text.count(f"PIAD ignores {name}={value!r}") == warnings


def test_scene_with_reflectance_channels_loads_without_the_paper_recipe(tmp_path):
    model = make_fitted(PIAD)
    model.model.scene.set_raw(with_reflectance(make_toy()).raw)
    assert is_reflective(model.model.scene)
    loaded = PIAD.load_from_checkpoint(save_checkpoint(model, tmp_path / "model.ckpt"), map_location="cpu")
    assert is_reflective(loaded.model.scene)


def test_only_the_paper_recipe_of_piad_fits_the_reflectance():
    assert [PIAD(recipe=recipe).fit_settings.reflectance for recipe in ("default", "paper")] == [False, True]


@for_each_model
def test_signature_of_the_class_lists_every_argument(model_class):
    parameters = inspect.signature(model_class).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == DEFAULTS[model_class]


@pytest.mark.parametrize("name", [*CHOICES, "removed"])
def test_wrong_value_on_the_command_line_is_refused_with_the_choices(name):
    model = "OmniposeAD" if name == "field" else "SplatPose"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalibModule, "model")
    arguments = ["--model", f"anomalib_pose.{model}", f"--model.{name}", "magic"]
    with pytest.raises(Exception, match=CHOICES[name][1] if name in CHOICES else "not accepted"):
        parser.parse_args(arguments)


@for_each_model
def test_unknown_argument_is_refused(model_class):
    with pytest.raises(TypeError, match=f"{model_class.__name__}.* unexpected keyword argument 'magic'"):
        model_class(magic=1)


def test_models_state_only_their_own_arguments():
    shared = set(inspect.signature(SceneModelMixin.__init__).parameters)
    for model_class in DEFAULTS:
        own = inspect.signature(model_class.__init__).parameters
        restated = {name for name in own if name in shared} - {"self"}
        assert all(own[name].default != SHARED[name] for name in restated)
