# SPDX-License-Identifier: Apache-2.0
"""The shape that queries are compared with, from files."""

from pathlib import Path

import torch
from torch import Tensor


def load_reference(path: str | Path) -> tuple[Tensor, Tensor]:
    """Views of a shape, RGB (V, 3, 256, 256) in [0, 1], and the coordinates of what their cells show (V, 32, 32, 3).

    Args:
        path: folder of rendered views in Looking3D's layout; ``tools/render_views.py`` writes one.

    Raises:
        FileNotFoundError: if there is no such folder, or no view in it.
        ValueError: if a file cannot be read.
    """
    from anomalib_pose.data.reference_files import find_reference_views

    views = find_reference_views(Path(path))
    return torch.stack([view.image() for view in views]), torch.stack([view.correspondences().xyz for view in views])
