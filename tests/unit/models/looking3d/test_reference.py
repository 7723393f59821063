# SPDX-License-Identifier: Apache-2.0
"""References are read from meshes and from rendered views."""

import pytest
import torch

from anomalib_pose.data.reference_views.mesh_files import read_mesh
from anomalib_pose.models.looking3d.reference import load_reference
from anomalib_pose.sample_data.reference_writer import write_reference_views

trimesh = pytest.importorskip("trimesh", reason="the extra mesh is not installed")


def test_a_mesh_is_rendered_as_by_render_views(tmp_path):
    trimesh.creation.annulus(0.3, 1.0, 0.5).export(tmp_path / "part.stl")
    write_reference_views(read_mesh(tmp_path / "part.stl"), tmp_path / "views", "part", progress=False)
    rendered, written = load_reference(tmp_path / "part.stl"), load_reference(tmp_path / "views")
    assert rendered[0].shape == (20, 3, 256, 256)
    torch.testing.assert_close(rendered[0], written[0], rtol=0, atol=0.51 / 255)
    torch.testing.assert_close(rendered[1], written[1], rtol=0, atol=1e-6)


def test_paths_without_mesh_or_views_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reference views"):
        load_reference(tmp_path)
    (tmp_path / "part.stl").write_text("no mesh")
    with pytest.raises(ValueError, match=r"part\.stl"):
        load_reference(tmp_path / "part.stl")
