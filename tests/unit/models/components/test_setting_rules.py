# SPDX-License-Identifier: Apache-2.0
"""Settings without effect, contradictions and numbers out of range are refused when a model is built."""

import inspect
import math
from typing import Any

import pytest
import torch

from anomalib_pose.models import PIAD, Looking3D, OmniposeAD, PointAD, SplatPose
from anomalib_pose.models.components.setting_rules import RULES, _report, check_rules
from anomalib_pose.registry import load_model, model_names
from sample_models import make_fitted, save_checkpoint

REFUSED = [
    (SplatPose, {"refine_focal": True, "refiner": "adam"}, "refine_focal=True needs the refiner 'gauss_newton'"),
    (SplatPose, {"matcher": "xfeat"}, "matcher='xfeat' needs matcher_weights"),
    (SplatPose, {"matcher_weights": "x.pt"}, "matcher_weights='x.pt' needs a matcher, got matcher=''"),
    (SplatPose, {"weights_path": "x.pt"}, "weights_path='x.pt' needs a backbone, got backbone=''"),
    (SplatPose, {"second_weights_path": "x.pt"}, "second_weights_path='x.pt' needs a second_backbone"),
    (SplatPose, {"second_backbone": "resnet18", "comparator": "paper"}, "second_backbone='resnet18' needs a comp"),
    (SplatPose, {"memory_patches": 500}, "memory_patches=500 needs a backbone, got backbone=''"),
    (PIAD, {"memory_patches": 1000}, "memory_patches=1000 needs a backbone, got backbone=''"),
    (SplatPose, {"memory_patches": 500, "comparator": "paper"}, "memory_patches=500 needs a calibrated comparator"),
    (PIAD, {"surface_strength": 1.0, "surface_views": 0}, "surface_strength=1.0 needs surface_views above 0"),
    (PIAD, {"reflectance_weights_path": "x.pt", "comparator": "paper"}, "reflectance_weights_path='x.pt' needs the"),
    (Looking3D, {"mask_dir": "masks"}, "mask_dir='masks' needs a reference, got reference=''"),
    (Looking3D, {"encoder_weights": "a.pt", "weights_path": "b.pt"}, "encoder_weights='a.pt' needs an empty"),
    (PointAD, {"backbone": "resnet18"}, "backbone='resnet18' needs scoring 'mutual', got scoring='prompts'"),
    (PointAD, {"scoring": "ensemble", "share": 0.5}, "share=0.5 needs scoring 'mutual'"),
    (PointAD, {"scoring": "mutual", "vv_blocks": 3}, "vv_blocks=3 needs scoring 'prompts' or 'ensemble'"),
    (PointAD, {"scoring": "mutual", "object_word": "toy"}, "object_word='toy' needs scoring 'ensemble'"),
    (Looking3D, {"warmup_steps": -1}, "warmup_steps should be 0 or more, got -1"),
    (SplatPose, {"bank_spacing": math.nan}, "bank_spacing should be a finite number, got nan"),
    (PIAD, {"surface_strength": math.inf}, "surface_strength should be a finite number, got inf"),
    (Looking3D, {"momentum": 1.5}, "momentum should be in [0, 1], got 1.5"),
    (Looking3D, {"learning_rate": math.nan}, "learning_rate should be a finite number"),
    (PointAD, {"smoothing": math.nan}, "smoothing should be a finite number"),
]

REPORTED = [
    (SplatPose, {"refiner_steps": 50}, "refiner_steps=50 needs another refiner"),
    (OmniposeAD, {"surface_views": 50, "comparator": "product"}, "surface_views=50 needs a calibrated comparator"),
    (PIAD, {"max_gaussians": 500, "recipe": "paper"}, "max_gaussians=500 needs the recipe 'default'"),
    (PointAD, {"scoring": "ensemble", "prompt_path": "x.pt"}, "prompt_path='x.pt' needs scoring 'prompts'"),
    (PointAD, {"prompt_path": "x.pt", "prompt_length": 3}, "prompt_length=3 needs an empty prompt_path"),
]

ACCEPTED = [
    (SplatPose, {"refiner": "adam", "refiner_steps": 50}),
    (SplatPose, {"memory_patches": 0, "surface_views": 0, "comparator": "paper"}),
    (SplatPose, {"second_backbone": "test_resnet"}),
    (SplatPose, {"refine_focal": True}),
    (SplatPose, {"recipe": "paper", "steps": 30}),
    (PIAD, {"surface_views": 0}),
    (PIAD, {"recipe": "paper", "refiner": "reflectance", "refiner_steps": 300, "comparator": "product"}),
    (PointAD, {"scoring": "mutual", "backbone": "test_resnet", "layers": [1, 2]}),
    (PointAD, {"scoring": "ensemble", "object_word": "toy"}),
    (PointAD, {"scoring": "ensemble", "layers": [2, 3]}),
]


@pytest.mark.parametrize(("model_class", "settings", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_one_sentence_names_both_settings(model_class, settings, message):
    with pytest.raises(ValueError, match="^" + model_class.__name__) as error:
        model_class(**settings)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("model_class", "settings", "message"), REPORTED, ids=lambda value: str(value)[:40])
def test_numbers_that_a_choice_ignores_are_reported_once(model_class, settings, message, caplog):
    defaults = {key: parameter.default for key, parameter in inspect.signature(model_class).parameters.items()}
    _report.cache_clear()
    for _ in range(2):
        check_rules(model_class, {**defaults, **settings})
    assert caplog.text.count(f"A setting has no effect: {model_class.__name__}'s {message}") == 1


@pytest.mark.parametrize(("model_class", "settings"), ACCEPTED, ids=lambda value: str(value)[:40])
def test_settings_that_work_are_accepted(model_class, settings):
    model_class(**settings)


@pytest.mark.parametrize("name", model_names())
def test_defaults_are_accepted_and_rules_name_settings(name):
    model_class = load_model(name)
    defaults = {key: parameter.default for key, parameter in inspect.signature(model_class).parameters.items()}
    for scoring in ("prompts", "ensemble", "mutual") if name == "PointAD" else (None,):
        check_rules(model_class, {**defaults, **({} if scoring is None else {"scoring": scoring})})
    for recipe in ("default", "paper") if "recipe" in defaults else ():
        check_rules(model_class, {**defaults, "recipe": recipe})


def test_every_rule_names_settings_of_a_model():
    signatures = [set(inspect.signature(load_model(name)).parameters) for name in model_names()]
    for rule in RULES:
        assert any({rule.setting, rule.other} <= names for names in signatures), rule


def test_a_checkpoint_with_a_setting_without_effect_loads(tmp_path):
    path = save_checkpoint(make_fitted(), tmp_path / "model.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] |= {"refiner_steps": 50, "memory_patches": 500}
    torch.save(checkpoint, path)
    loaded: Any = SplatPose.load_from_checkpoint(path, starts=2)
    assert (loaded.hparams["refiner_steps"], loaded.hparams["starts"]) == (50, 2)
    with pytest.raises(ValueError, match="refine_focal=True needs the refiner 'gauss_newton', got refiner='adam'"):
        SplatPose.load_from_checkpoint(path, refiner="adam", refine_focal=True)
    with pytest.raises(ValueError, match="matcher='xfeat' needs"):
        SplatPose.load_from_checkpoint(path, matcher="xfeat")
