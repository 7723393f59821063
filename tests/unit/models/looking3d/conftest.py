# SPDX-License-Identifier: Apache-2.0
"""Weights and inputs of the stored reference outputs, computed by formula."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from anomalib_pose.models.looking3d.checkpoint import PARTS, load_part, read_checkpoint
from anomalib_pose.models.looking3d.torch_model import Looking3DModel


@pytest.fixture(scope="session")
def published_weights(shared, formula) -> dict[str, dict[str, torch.Tensor]]:
    layout = json.loads((shared / "reference" / "looking3d_checkpoint_layout.json").read_text())
    return {
        part: {
            entry["key"]: torch.from_numpy(formula.weight(f"{part}.{entry['key']}", entry["shape"]).copy())
            for entry in state["entries"]
        }
        for part, state in layout["state_dicts"].items()
    }


@pytest.fixture(scope="session")
def published(published_weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "model.pt"
    torch.save(published_weights, path)
    return path


@pytest.fixture(scope="session")
def model(published) -> Looking3DModel:
    model = Looking3DModel().eval()
    weights = read_checkpoint(published)
    for part in PARTS:
        load_part(getattr(model, part), weights[part], part)
    return model.requires_grad_(False)


class Golden:
    """Inputs and stored outputs of one file, with the features of its views."""

    def __init__(self, path: Path, count: int, formula: ModuleType) -> None:
        self.arrays = np.load(path)
        background = path.stem.endswith("background")

        def image(name: str) -> torch.Tensor:
            pixels = formula.l3d_image(name)
            pixels = formula.l3d_background(pixels, name) if background else pixels
            return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255

        self.query = image("query")[None]
        self.views = torch.stack([image(f"view.{index:02d}") for index in range(count)])[None]
        self.xyz = torch.stack([torch.from_numpy(formula.l3d_xyz(f"xyz.{index:02d}")) for index in range(count)])[None]
        self.keys = torch.from_numpy(self["topk_index"].astype(np.int64))[None]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


@pytest.fixture(scope="session", params=["3", "3_background", pytest.param("20", marks=pytest.mark.slow)])
def golden(request, shared, formula, model) -> Golden:
    case = Golden(
        shared / "reference" / f"looking3d_golden_{request.param}.npz", int(request.param[:2].rstrip("_")), formula
    )
    with torch.no_grad():
        case.features = torch.stack([model.encoder((view - 0.5) / 0.5) for view in case.views.transpose(0, 1)], 1)
        case.query_features = model.encoder((case.query - 0.5) / 0.5)
        case.shape = model.reference(case.views, case.xyz, case.features)
    return case
