# SPDX-License-Identifier: Apache-2.0
"""Meshes as trimesh reads them, scaled to fit into reference views; and the command that renders their views."""

import base64
import json
import logging
import struct
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
        "point.obj": ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "no faces with an area"),
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


TETRAHEDRON = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"
CORNERS = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])


def _ply_text(vertices: str, faces: str) -> str:
    counts = len(vertices.splitlines()), len(faces.splitlines())
    columns = "".join(f"property double {axis}\n" for axis in "xyz")
    return (
        f"ply\nformat ascii 1.0\nelement vertex {counts[0]}\n{columns}element face {counts[1]}\n"
        f"property list uchar int vertex_indices\nend_header\n{vertices}{faces}"
    )


def _gltf(indices: tuple[int, ...] = (0, 1, 2), count: int = 3, **parts: object) -> str:
    content = np.eye(3, dtype="<f4").tobytes() + np.array(indices, "<u2").tobytes()
    uri = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
    scene = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1, "material": 0}]}],
        "materials": [{}],
        "accessors": [
            {"bufferView": 0, "componentType": 5126, "count": count, "type": "VEC3"},
            {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": 36},
            {"buffer": 0, "byteOffset": 36, "byteLength": 6},
        ],
        "buffers": [{"byteLength": 42, "uri": uri}],
    }
    return json.dumps({**scene, **parts})


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "faces"),
    [
        ("plain.obj", TETRAHEDRON + "f 1 2 3\nf 1 2 4\nf 1 3 4\n", 3),
        ("negative.obj", TETRAHEDRON + "f -4 -3 -2\nf -4 -3 -1\n", 2),
        ("slashes.obj", TETRAHEDRON + "vn 0 0 1\nf 1//1 2//1 3//1\nf 1//1 2//1 4//1\n", 2),
        ("quad.obj", TETRAHEDRON + "f 1 2 3 4\n", 2),
        ("mark.obj", b"\xef\xbb\xbf" + (TETRAHEDRON + "f 1 2 3\nf 1 2 4\n").encode(), 2),
        ("windows.obj", (TETRAHEDRON + "f 1 2 3\nf 1 2 4\n").replace("\n", "\r\n"), 2),
        ("latin.obj", b"# \xe9\xe8\n" + (TETRAHEDRON + "f 1 2 3\nf 1 2 4\n").encode(), 2),
        ("lines.obj", TETRAHEDRON + "l 1 2\nf 1 2 3\nf 1 2 4\n", 2),
        ("parts.obj", TETRAHEDRON + "o one\nf 1 2 3\no two\ng three\nf 1 2 4\n", 2),
        ("UPPER.OBJ", TETRAHEDRON + "f 1 2 3\nf 1 2 4\n", 2),
        ("mark.off", b"\xef\xbb\xbfOFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n", 2),
        ("comment.off", "OFF # one\n# two\n4 2 0\n0 0 0\n1 0 0 # three\n\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n", 2),
        ("quad.off", "OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n4 0 1 2 3\n", 2),
        ("mixed.ply", _ply_text("0 0 0\n1 0 0\n0 1 0\n0 0 1\n", "4 0 1 2 3\n3 0 1 2\n"), 3),
        ("unused.obj", TETRAHEDRON + "v 1000 0 0\nf 1 2 3\nf 1 2 4\n", 2),
        ("repeated.obj", TETRAHEDRON + "v 1000 0 0\nf 1 2 3\nf 1 2 4\nf 1 1 5\nf 5 5 5\n", 2),
        ("same place.obj", TETRAHEDRON + "v 1000 0 0\nv 0 0 0\nf 1 2 3\nf 1 2 4\nf 1 6 5\n", 2),
        ("line.obj", TETRAHEDRON + "v 100 30 7\nv 50 15 3.5\nf 1 2 3\nf 1 2 4\nf 1 6 5\n", 2),
        (
            "line.ply",
            _ply_text("0 0 0\n1 0 0\n0 1 0\n0 0 1\n.1 .3 .7\n9.1 27.3 63.7\n", "3 0 1 2\n3 0 1 3\n3 0 4 5\n"),
            2,
        ),
    ],
)
def test_meshes_of_other_programs_are_read(tmp_path: Path, name: str, content: str | bytes, faces: int) -> None:
    pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    path = _write(tmp_path / name, content)
    mesh = read_mesh(path, normalize=False)
    assert len(mesh.faces) == faces
    np.testing.assert_allclose(np.unique(mesh.vertices.numpy(), axis=0), CORNERS)
    # The center of the bounding box is (0.5, 0.5, 0.5), from which all corners are equally far.
    expected = (CORNERS - 0.5) / np.sqrt(0.75) * 0.9
    np.testing.assert_allclose(np.unique(read_mesh(path).vertices.numpy(), axis=0), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-3, 1e3, 1e30, 1e200])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_scale_and_place_do_not_matter(tmp_path: Path, scale: float, offset: float) -> None:
    pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    corners = "".join(f"v {' '.join(repr(float(value)) for value in (c + offset) * scale)}\n" for c in CORNERS)
    path = _write(tmp_path / "a.obj", corners + "f 1 2 3\nf 1 2 4\n")
    expected = (CORNERS - 0.5) / np.sqrt(0.75) * 0.9
    np.testing.assert_allclose(np.unique(read_mesh(path).vertices.numpy().round(5), axis=0), expected, atol=2e-5)
    if scale > 1e38:
        with pytest.raises(ValueError, match=r"a\.obj has coordinates up to 1.*which float32 cannot hold"):
            read_mesh(path, normalize=False)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("zero.obj", TETRAHEDRON + "f 1 2 3\nf 0 1 2\n", "vertex 0 in line 6"),
        ("zero.obj", TETRAHEDRON + "f 1//1 2//1 0//1\n", "vertex 0 in line 5"),
        ("range.obj", TETRAHEDRON + "f 1 2 9\n", "out of bounds"),
        ("range.obj", TETRAHEDRON + "f 1 2 -9\n", "out of bounds"),
        ("range.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 5\n", "outside the range"),
        ("range.ply", _ply_text("0 0 0\n1 0 0\n0 1 0\n", "3 0 1 7\n"), "the vertex 7, but 3 vertices"),
        ("range.ply", _ply_text("0 0 0\n1 0 0\n0 1 0\n", "3 0 1 -1\n"), "the vertex -1, but 3 vertices"),
        ("range.gltf", _gltf((0, 1, 9)), "the vertex 9, but 3 vertices"),
        ("nan.ply", _ply_text("0 0 0\nnan 0 0\n0 1 0\n", "3 0 1 2\n"), "not finite"),
        ("unused nan.ply", _ply_text("0 0 0\n1 0 0\n0 1 0\nnan 0 0\n", "3 0 1 2\n"), "not finite"),
        ("inf.off", "OFF\n3 1 0\n0 0 0\ninf 0 0\n0 1 0\n3 0 1 2\n", "not finite"),
        ("nan.stl", bytes(80) + struct.pack("<I12fH", 1, *[0] * 3, *[0] * 3, 1, 0, np.nan, 1, 1, 1, 0), "not finite"),
        ("flat.obj", TETRAHEDRON + "f 1 1 2\nf 3 3 3\n", "no faces with an area: its 2 faces"),
        ("points.ply", _ply_text("0 0 0\n1 0 0\n0 1 0\n", ""), "no faces"),
        (
            "faces.ply",
            "ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n3 0 1 2\n",
            "no faces",
        ),
        ("empty.stl", b"", "cut short"),
        ("empty.stl", bytes(84), "no faces"),
        (
            "short.stl",
            bytes(80) + struct.pack("<I", 2) + bytes(60),
            "cut short: an .stl of 2 faces needs 184 bytes, has 144",
        ),
        ("huge.stl", bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(100), "cut short"),
        (
            "huge.ply",
            b"ply\nformat binary_little_endian 1.0\nelement vertex 300000000000\nproperty float x\nproperty float y\n"
            b"property float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n" + bytes(50),
            "cannot be read as a mesh",
        ),
        ("huge.gltf", _gltf(count=3_000_000_000), "cannot be read as a mesh"),
        ("buffer.gltf", _gltf(buffers=[{"byteLength": 42, "uri": "none.bin"}]), r"none\.bin"),
        ("scene.gltf", _gltf(nodes=[{}]), "no faces"),
        (
            "node.gltf",
            _gltf(nodes=[{"mesh": 0, "scale": [1e308, 1e308, 1e308], "translation": [1e308] * 3}]),
            "not finite",
        ),
    ],
)
def test_damaged_meshes_are_refused_with_one_sentence(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    path = _write(tmp_path / name, content)
    with pytest.raises(ValueError, match=words) as error:
        read_mesh(path, normalize=False)
    assert name in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.stl", {"file_type": "stl_ascii"}), ("a.ply", {"encoding": "ascii"}), ("a.off", {})],
)
def test_text_meshes_that_are_cut_short_are_refused(tmp_path: Path, name: str, options: dict) -> None:
    trimesh = pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    path = tmp_path / name
    trimesh.creation.box().export(path, **options)
    whole = path.read_bytes()
    assert len(read_mesh(path).faces) == 12
    for length in range(0, len(whole.rstrip()) - 10, 31):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name}.*(cut short|no faces|cannot be read)"):
            read_mesh(path)


def test_binary_meshes_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    for suffix in (".stl", ".ply", ".glb"):
        path = box_file(tmp_path / f"box{suffix}")
        whole = path.read_bytes()
        for length in range(0, len(whole) - 1, 97):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=rf"box\{suffix}"):
                read_mesh(path)


@pytest.mark.parametrize(
    ("name", "content", "missing"),
    [
        ("a.obj", "mtllib none here.mtl\nusemtl x\n" + TETRAHEDRON + "f 1 2 3\n", "none here.mtl"),
        ("a.obj", "mtllib some.mtl\nusemtl x\n" + TETRAHEDRON + "f 1 2 3\n", "none.png, bump.png"),
        ("a.gltf", _gltf(images=[{"uri": "none%20here.png"}], textures=[{"source": 0}]), "none here.png"),
        ("a.gltf", _gltf(images=[{"uri": "data:image/png;base64,"}], textures=[{"source": 0}]), None),
        ("a.obj", TETRAHEDRON + "f 1 2 3\n", None),
    ],
)
def test_missing_materials_are_reported(tmp_path: Path, caplog, name: str, content: str, missing: str | None) -> None:
    pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    (tmp_path / "some.mtl").write_text("newmtl x\nmap_Kd -s 1 1 1 none.png\nbump bump.png\n")
    assert len(read_mesh(_write(tmp_path / name, content)).faces) == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    expected = (
        [] if missing is None else [f"{tmp_path / name} names files that do not exist ({missing}): the mesh is gray."]
    )
    assert warnings == expected


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
