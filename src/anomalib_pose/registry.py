# SPDX-License-Identifier: Apache-2.0
"""The registry of this package's models.

A new model needs a folder in ``anomalib_pose.models``, one line in ``MODELS`` and one entry point in
``pyproject.toml``. The package's public names, pose estimation, the command line and the tests read this list. The
module imports only the standard library, so that ``import anomalib_pose`` stays light.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class RegisteredModel:
    """Name and location of one model.

    Args:
        name: name of the class.
        module: module that the class is imported from.
        is_scene_model: whether the model fits a renderable scene to one object, and so can estimate camera poses.
    """

    name: str
    module: str
    is_scene_model: bool = False


MODELS = (
    RegisteredModel("Looking3D", "anomalib_pose.models.looking3d"),
    RegisteredModel("OmniposeAD", "anomalib_pose.models.omnipose_ad", is_scene_model=True),
    RegisteredModel("PIAD", "anomalib_pose.models.piad", is_scene_model=True),
    RegisteredModel("PointAD", "anomalib_pose.models.point_ad"),
    RegisteredModel("SplatPose", "anomalib_pose.models.splat_pose", is_scene_model=True),
)
"""All models, sorted by name."""


def model_names() -> tuple[str, ...]:
    """Return the names of all models."""
    return tuple(model.name for model in MODELS)


def scene_models() -> tuple[str, ...]:
    """Return the names of the models that fit a scene and can estimate camera poses."""
    return tuple(model.name for model in MODELS if model.is_scene_model)


def load_model(name: str) -> type[Any]:
    """Import the class of a model.

    Args:
        name: name of the class.

    Raises:
        ValueError: if the registry has no model of this name.
    """
    for model in MODELS:
        if model.name == name:
            model_class: type[Any] = getattr(import_module(model.module), name)
            return model_class
    msg = f"model should be one of {', '.join(model_names())}, got {name!r}."
    raise ValueError(msg)
