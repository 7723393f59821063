# SPDX-License-Identifier: Apache-2.0
"""A few small clouds, and networks that score them.

The networks are a backbone with random weights, and the small CLIP of the stored reference outputs, with random weights
or those of the formula.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch

from anomalib_pose.data import MVTec3DRendered
from anomalib_pose.models import PointAD
from anomalib_pose.models.point_ad.clip import Clip, load_clip
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.sample_data import write_clouds
from small_clip import SMALL, write_small_clip

_BACKBONE, _LAYERS = "test_resnet", (1, 2)


@pytest.fixture(scope="session")
def clouds_root(tmp_path_factory) -> Path:
    """Raw recordings of three normal and four defective rings, and of as many pegs."""
    root = tmp_path_factory.mktemp("data") / "clouds"
    return write_clouds(root, ["ring", "peg"], 0, 64, train=0, test_good=3, test_per_defect=1, progress=False)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Random weights of the backbone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(_BACKBONE, pretrained=False)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def make_clouds(clouds_root) -> Callable[..., MVTec3DRendered]:
    """Create the data module of the rings, with changed arguments."""
    small = {"train_category": None, "views": 5, "size": 48, "num_workers": 0}
    return lambda **changes: MVTec3DRendered(clouds_root, "ring", **{**small, **changes})


@pytest.fixture(scope="session")
def make_mutual(weights) -> Callable[..., PointAD]:
    """Create a model with mutual scoring, with changed arguments."""
    return lambda **changes: PointAD("mutual", backbone=_BACKBONE, weights_path=str(weights), layers=_LAYERS, **changes)


@pytest.fixture(scope="session")
def configuration(tmp_path_factory) -> Path:
    return write_small_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def make_clip(configuration) -> Callable[..., PointAD]:
    """Create a model with the small random CLIP, with changed arguments."""
    small = {"clip_model": str(configuration), "pretrained": "", "prompt_length": 4, "deep_sets": 2, "deep_length": 2}
    return lambda scoring="prompts", **changes: PointAD(scoring, **{**small, **changes})


@pytest.fixture(scope="session")
def small(configuration) -> Clip:
    return load_clip(configuration, None)


@pytest.fixture(scope="session")
def golden_weights(formula) -> dict[str, torch.Tensor]:
    state = open_clip.CLIP(**SMALL).state_dict()
    return {name: torch.from_numpy(formula.weight(f"clip.{name}", value.shape).copy()) for name, value in state.items()}


@pytest.fixture(scope="session")
def golden_clip(configuration, golden_weights, tmp_path_factory) -> Clip:
    path = tmp_path_factory.mktemp("clip") / "weights.pt"
    torch.save(golden_weights, path)
    return load_clip(configuration, path)


@pytest.fixture(scope="session")
def golden(shared):
    """Read the arrays of one reference file."""
    return lambda name: np.load(shared / "reference" / f"pointad_golden_{name}.npz")


@pytest.fixture
def golden_prompts(golden, golden_clip) -> PromptLearner:
    arrays = golden("text")
    prompts = PromptLearner(golden_clip.text, deep_sets=2, paper=True)
    prompts.load_state_dict(
        {
            name: torch.from_numpy(arrays[array])
            for name, array in (("normal", "ctx_pos"), ("abnormal", "ctx_neg"), ("deep", "deep_tokens"))
        }
    )
    return prompts
