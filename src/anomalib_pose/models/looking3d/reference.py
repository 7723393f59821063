# SPDX-License-Identifier: Apache-2.0
"""The shape that queries are compared with, from files."""

from pathlib import Path

import torch
from torch import Tensor

from anomalib_pose.data.mesh_files import MESH_SUFFIXES, read_mesh
from anomalib_pose.data.reference_files import find_reference_views, read_views
from anomalib_pose.render.reference_views import render_reference_views


def load_reference(path: str | Path) -> tuple[Tensor, Tensor]:
    """Views of a shape, RGB (V, 3, 256, 256) in [0, 1], and the coordinates of what their cells show (V, 32, 32, 3).

    Args:
        path: mesh, of which 20 views are drawn, or folder of rendered views in Looking3D's layout, as
            ``tools/render_views.py`` writes them.

    Raises:
        FileNotFoundError: if there is no such file or folder, or no view in it.
        ImportError: if it is a mesh and trimesh is not installed.
        ValueError: if a file cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() not in MESH_SUFFIXES:
        return read_views(find_reference_views(path))
    views = list(render_reference_views(read_mesh(path)))
    images = torch.stack([view.grey for view in views]).float()
    return images[:, None].expand(-1, 3, -1, -1).contiguous(), torch.stack([view.xyz for view in views]).float()
