# SPDX-License-Identifier: Apache-2.0
"""Names, order, defaults and help texts of the public datamodules' arguments, as the command line takes them."""

import inspect
import json

import pytest
from jsonargparse import ArgumentParser

import anomalib_pose

LOADING = {"eval_batch_size": 1, "num_workers": 2}
SPLIT = {"val_split_mode": "same_as_test", "val_split_ratio": 0.5, "seed": None}
POSED = {"train_batch_size": 8, **LOADING, **SPLIT}
CLOUDS = {"train_batch_size": 4, **LOADING, **SPLIT}
ARGUMENTS = {
    "MAD": {"root": "./datasets/MAD-Sim", "category": "01Gorilla", "image_size": None, **POSED},
    "MIP": {"root": "./datasets/MIP", "category": "Sprockets", "layout": "auto", "image_size": None, **POSED},
    "PosedFolder": {
        "root": None,  # the one argument without a default
        "query_dir": None,
        "mask_dir": None,
        "holdout_every": 8,
        "image_size": None,
        "white_background": False,
        **POSED,
    },
    "MVTec3DRendered": {
        "root": "./datasets/mvtec_3d",
        "category": "bagel",
        "train_category": "carrot",
        "train_root": None,
        "views": 9,
        "size": 336,
        "point_size": None,
        "depth_tolerance": None,
        "cache_dir": None,
        **CLOUDS,
    },
    "EyecandiesRendered": {
        "root": "./datasets/eyecandies",
        "category": "CandyCane",
        "train_category": "Confetto",
        "train_root": None,
        "size": 336,
        **CLOUDS,
    },
    "Real3DADRendered": {
        "root": "./datasets/real3d",
        "category": "airplane",
        "train_category": "seahorse",
        "train_root": None,
        "size": 336,
        **CLOUDS,
    },
    "BrokenChairs": {
        "root": "./datasets/BrokenChairs",
        "train_views": 5,
        "eval_views": 20,
        "flip": True,
        "light": True,
        "queries_per_shape": 1,
        "train_batch_size": 6,
        **LOADING,
        **SPLIT,
        "val_split_mode": "from_dir",
    },
}
NAMES = sorted(ARGUMENTS)


def options(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(anomalib_pose, name), "data")
    return {a.dest.removeprefix("data."): a for a in parser._actions if a.dest.startswith("data.")}


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_takes_these_arguments_in_this_order_with_these_defaults(name):
    defaults = {key: action.default for key, action in options(name).items()}
    assert list(defaults.items()) == list(ARGUMENTS[name].items())


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_has_a_help_text(name):
    assert all(action.help for action in options(name).values())


@pytest.mark.parametrize("name", NAMES)
def test_all_arguments_can_be_given_by_position(name):
    values = ARGUMENTS[name] | {"root": "here", "train_batch_size": 11, "num_workers": 3, "val_split_ratio": 0.25}
    values |= {"seed": 7, "eval_batch_size": 5, "val_split_mode": "from_test"}
    datamodule = getattr(anomalib_pose, name)(*values.values())
    checked = ("root", "train_batch_size", "eval_batch_size", "num_workers", "val_split_ratio", "seed")
    result = {key: getattr(datamodule, key) for key in checked}
    assert result.pop("root").name == "here"
    assert result == {key: values[key] for key in result}
    assert datamodule.val_split_mode == "from_test"


@pytest.mark.parametrize("name", NAMES)
def test_unknown_arguments_are_refused(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch_sizes'"):
        getattr(anomalib_pose, name)(root="here", batch_sizes=3)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_choice_is_answered_with_the_choices(name):
    choices = {"layout": "auto, synthetic, colmap", "val_split_mode": "same_as_test, from_test"}
    for key in choices.keys() & ARGUMENTS[name].keys():
        with pytest.raises(ValueError, match=f"{key} should be one of .*{choices[key]}.*, got 'wrong'") as error:
            getattr(anomalib_pose, name)(root="here", **{key: "wrong"})
        assert "\n" not in str(error.value)
        choice = options(name)[key]
        assert str(choice._typehint).startswith("typing.Literal[")
        for word in choices[key].split(", "):
            assert word in str(choice._typehint)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_file_may_set_every_argument(name, tmp_path):
    values = ARGUMENTS[name] | {"root": str(tmp_path), "train_batch_size": 3}
    config = tmp_path / "data.yaml"
    config.write_text(json.dumps({"class_path": f"anomalib_pose.data.{name}", "init_args": values}))
    datamodule = getattr(anomalib_pose, name).from_config(config)
    assert (datamodule.root.resolve(), datamodule.train_batch_size) == (tmp_path.resolve(), 3)


def test_these_are_all_public_datamodules():
    from anomalib.data import AnomalibDataModule

    public = {name: getattr(anomalib_pose, name) for name in anomalib_pose.__all__ if name[0] != "_"}
    datamodules = [
        name for name, value in public.items() if inspect.isclass(value) and issubclass(value, AnomalibDataModule)
    ]
    assert sorted(datamodules) == NAMES
