# SPDX-License-Identifier: Apache-2.0
"""Shapes are checked at run time in every layer that declares them; shared data are found or their tests skipped."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

CHECKED = [f"anomalib_pose.{layer}" for layer in ("geometry", "render", "scene", "pose", "compare")]
install_import_hook(CHECKED, "beartype.beartype")

# Images in tests are small: a second thread costs more than it brings.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference arrays, weights and data: beside the project, or where ANOMALIB_POSE_SHARED points."""
    folder = Path(os.environ.get("ANOMALIB_POSE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data are not at {folder}; set ANOMALIB_POSE_SHARED to their folder")
    return folder
