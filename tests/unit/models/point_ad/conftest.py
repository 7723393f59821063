# SPDX-License-Identifier: Apache-2.0
"""A few small clouds, and a network with random weights to compare them by."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from anomalib_pose.data import MVTec3DRendered
from anomalib_pose.data.sample import write_clouds
from anomalib_pose.models import PointAD

_BACKBONE, _LAYERS = "test_resnet", (1, 2)


@pytest.fixture(scope="session")
def clouds_root(tmp_path_factory) -> Path:
    """Raw recordings of three good and four defective rings."""
    root = tmp_path_factory.mktemp("data") / "clouds"
    return write_clouds(root, ["ring"], 0, 64, train=0, test_good=3, test_per_defect=1, progress=False)


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
    """The datamodule of the rings, with what is changed."""
    return lambda **changes: MVTec3DRendered(
        clouds_root, "ring", None, **{"views": 5, "size": 48, "num_workers": 0, **changes}
    )


@pytest.fixture(scope="session")
def make_mutual(weights) -> Callable[..., PointAD]:
    """A model with mutual scoring, with what is changed."""
    return lambda **changes: PointAD("mutual", backbone=_BACKBONE, weights_path=str(weights), layers=_LAYERS, **changes)
