# SPDX-License-Identifier: Apache-2.0
"""Meshes as trimesh reads them, scaled to fit into reference views; and the command that renders their views."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from anomalib_pose.cli import run_command
from anomalib_pose.data.reference_views.files import find_reference_views
from anomalib_pose.data.reference_views.mesh_files import read_mesh


def box_file(path: Path) -> Path:
    """A box of 4 x 2 x 1 around (5, 6, 7)."""
    trimesh = pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    box = trimesh.creation.box(extents=(4, 2, 1))
    box.apply_translation((5, 6, 7))
    box.export(path)
    return path


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb", ".stl", ".off"])
def test_meshes_are_read_and_normalized(tmp_path: Path, suffix: str) -> None:
    path = box_file(tmp_path / f"box{suffix}")
    corners = np.array([[x, y, z] for x in (-2, 2) for y in (-1, 1) for z in (-0.5, 0.5)])
    kept = read_mesh(path, normalize=False)
    assert len(kept.faces) == 12
    np.testing.assert_allclose(np.unique(kept.vertices.numpy(), axis=0), corners + np.array((5, 6, 7)), atol=1e-6)
    scaled = read_mesh(path).vertices.numpy()
    np.testing.assert_allclose(np.unique(scaled, axis=0), 0.9 * corners / np.linalg.norm(corners[0]), atol=1e-6)


def test_parts_of_a_scene_become_one_mesh_where_they_stand(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    scene = trimesh.Scene()
    for shift in (0, 10):
        scene.add_geometry(trimesh.creation.box(), transform=trimesh.transformations.translation_matrix((shift, 0, 0)))
    scene.export(tmp_path / "two.glb")
    vertices = read_mesh(tmp_path / "two.glb", normalize=False).vertices.numpy()
    np.testing.assert_allclose([vertices.min(0), vertices.max(0)], [[-0.5, -0.5, -0.5], [10.5, 0.5, 0.5]], atol=1e-6)


def test_holes_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    (tmp_path / "one.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with caplog.at_level(logging.INFO, "anomalib_pose"):
        read_mesh(tmp_path / "one.obj")
        assert "1 faces, and the surface has holes" in caplog.text
        caplog.clear()
        read_mesh(box_file(tmp_path / "box.stl"))
        assert "12 faces." in caplog.text


def test_files_that_are_not_meshes_are_named(tmp_path: Path) -> None:
    pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    files = {
        "empty.obj": ("", "no faces|cannot be read"),
        "points.obj": ("v 0 0 0\nv 1 0 0\n", "no faces|cannot be read"),
        "nan.obj": ("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n", "not finite numbers"),
        "point.obj": ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "same point|no faces"),
        "junk.glb": ("this is no mesh", "cannot be read as a mesh"),
        "junk.ply": ("this is no mesh", "cannot be read as a mesh"),
        "notes.txt": ("v 0 0 0", "is read from a file"),
    }
    for name, (text, message) in files.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            read_mesh(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(FileNotFoundError, match="There is no mesh"):
        read_mesh(tmp_path / "none.obj")


def test_the_error_without_trimesh_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ImportError, match=r"anomalib-pose\[mesh\]"):
        read_mesh(tmp_path / "one.obj")


def test_the_command_renders_a_mesh(tmp_path: Path, capsys) -> None:
    mesh = box_file(tmp_path / "box.ply")
    arguments = [str(mesh), str(tmp_path / "views"), "--views", "2", "--elevation", "35", "--distance", "2.5"]
    run_command("render-views", arguments)
    files = find_reference_views(tmp_path / "views")
    assert [file.image_path.stem for file in files] == ["box_2.5_0_35", "box_2.5_180_35"]
    for wrong, message in (([], "exists already"), (["--overwrite", "--views", "0"], "views has to be 1 or more")):
        with pytest.raises(SystemExit, match="1"):
            run_command("render-views", [*arguments, *wrong])
        assert message in capsys.readouterr().err
    assert len(find_reference_views(tmp_path / "views")) == 2
