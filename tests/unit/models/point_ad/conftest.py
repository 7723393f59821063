# SPDX-License-Identifier: Apache-2.0
"""The small CLIP that the reference's numbers were computed with, with random weights or those of the formula."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from anomalib_pose.models.point_ad.clip import Clip, load_clip
from anomalib_pose.models.point_ad.prompts import PromptLearner

SMALL = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 4},
}


@pytest.fixture(scope="session")
def configuration(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


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
    """Arrays of one file of the reference."""
    return lambda name: np.load(shared / "reference" / f"pointad_golden_{name}.npz")


@pytest.fixture
def golden_prompts(golden, golden_clip) -> PromptLearner:
    arrays = golden("text")
    prompts = PromptLearner(golden_clip.text, deep_sets=2, half_precision_prompts=True)
    prompts.load_state_dict(
        {
            name: torch.from_numpy(arrays[array])
            for name, array in (("normal", "ctx_pos"), ("abnormal", "ctx_neg"), ("deep", "deep_tokens"))
        }
    )
    return prompts
