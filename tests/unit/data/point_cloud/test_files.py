# SPDX-License-Identifier: Apache-2.0
"""Readers of clouds on files written byte by byte, and on files that are not clouds."""

import struct

import numpy as np
import pytest
import tifffile
import torch

from anomalib_pose.data.point_cloud.files import read_points, read_xyz, write_pcd

COUNT = 120
POINTS = np.random.default_rng(0).normal(size=(COUNT, 3)).astype(np.float32)
BYTES = np.random.default_rng(1).integers(0, 256, (COUNT, 3))


def ply(path, layout, faces=True):
    """Points, colors and a face; ``layout`` is text or the byte order."""
    name = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[layout]
    header = ["ply", f"format {name} 1.0", "comment made here", f"element vertex {COUNT}"]
    header += [f"property double {axis}" for axis in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    header += ["element face 1", "property list uchar int vertex_indices"] if faces else []
    body = b""
    for point, color in zip(POINTS.tolist(), BYTES.tolist(), strict=True):
        if layout:
            body += struct.pack(f"{layout}dddBBB", *point, *color)
        else:
            body += " ".join(map(repr, (*point, *color))).encode() + b"\n"
    body += (b"3 0 1 2\n" if not layout else struct.pack(f"{layout}Biii", 3, 0, 1, 2)) if faces else b""
    path.write_bytes("\n".join([*header, "end_header", ""]).encode() + body)
    return path


def pcd(path, layout):
    """Points, a packed color and padding."""
    header = ["# .PCD v0.7", "VERSION 0.7", "FIELDS x y z _ rgb _", "SIZE 4 4 4 1 4 1", "TYPE F F F U U U"]
    header += ["COUNT 1 1 1 2 1 3", f"WIDTH {COUNT}", "HEIGHT 1", f"POINTS {COUNT}", f"DATA {layout}", ""]
    body = b""
    for point, (r, g, b) in zip(POINTS.tolist(), BYTES.tolist(), strict=True):
        packed = int(r) * 65536 + int(g) * 256 + int(b)
        if layout == "ascii":
            body += " ".join(map(repr, (*point, 0, 0, packed, 0, 0, 0))).encode() + b"\n"
        else:
            body += struct.pack("<fffBBIBBB", *point, 0, 0, packed, 0, 0, 0)
    path.write_bytes("\n".join(header).encode() + body)
    return path


def check(read):
    np.testing.assert_allclose(read.points.numpy(), POINTS, rtol=1e-6)
    np.testing.assert_allclose(read.colors.numpy(), BYTES / 255, atol=1e-6)


@pytest.mark.parametrize("layout", ["", "<", ">"])
@pytest.mark.parametrize("faces", [True, False])
def test_ply_in_every_format(tmp_path, layout, faces):
    check(read_points(ply(tmp_path / "a.ply", layout, faces)))


@pytest.mark.parametrize("layout", ["ascii", "binary"])
def test_pcd_in_both_formats(tmp_path, layout):
    check(read_points(pcd(tmp_path / "a.pcd", layout)))


def test_pcd_that_is_written_is_read(tmp_path):
    write_pcd(tmp_path / "a.pcd", torch.from_numpy(POINTS), torch.from_numpy(BYTES / 255))
    check(read_points(tmp_path / "a.pcd"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pcd"]


def test_points_without_colors(tmp_path):
    rows = "\n".join(" ".join(map(repr, row)) for row in POINTS.tolist())
    head = f"VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {COUNT}\nHEIGHT 1\nPOINTS {COUNT}\n"
    (tmp_path / "a.pcd").write_text(f"{head}DATA ascii\n{rows}\n")
    assert read_points(tmp_path / "a.pcd").colors is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-9], "cut short"),
        (lambda data: data.replace(b"DATA binary", b"DATA binary_compressed"), "binary_compressed"),
        (lambda data: data.replace(b"DATA binary", b"NOTHING"), "no line DATA"),
        (lambda data: data.replace(b"FIELDS x y z", b"FIELDS a b c"), "x, y and z"),
        (lambda data: data.replace(b"SIZE 4", b"SIZE 3"), "header"),
        (lambda data: data.replace(f"POINTS {COUNT}".encode(), b"POINTS 99"), "99 points"),
    ],
)
def test_broken_pcd_files_are_refused(tmp_path, change, words):
    path = pcd(tmp_path / "a.pcd", "binary")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=words) as error:
        read_points(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.replace(b"element vertex 120", b"element vertex 121"), "cut short"),
        (lambda data: b"x" + data, "no ply header"),
        (lambda data: data.replace(b"ascii", b"morse"), "got 'morse'"),
        (lambda data: data.replace(b"element vertex", b"element bertex"), "should be its vertices"),
        (lambda data: data.replace(b"double", b"quaduple"), "types"),
        (lambda data: data.replace(b"uchar green", b"uchar red"), "one name"),
        (lambda data: data.replace(b"end_header\n", b"end_header\nhello\n"), "no vertex"),
    ],
)
def test_broken_ply_files_are_refused(tmp_path, change, words):
    path = ply(tmp_path / "a.ply", "", faces=False)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=words) as error:
        read_points(path)
    assert str(path) in str(error.value)


def test_other_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"\.ply or \.pcd"):
        read_points(tmp_path / "a.obj")
    for name in ("a.ply", "a.pcd"):
        with pytest.raises(FileNotFoundError, match=r"a\.p"):
            read_points(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"a\.tiff"):
        read_xyz(tmp_path / "a.tiff")


def test_points_of_a_tiff_that_are_not_finite_are_removed(tmp_path):
    xyz = np.random.default_rng(2).random((12, 14, 3)).astype(np.float64) + 1
    xyz[0, 0, 1], xyz[1, 1], xyz[2, 2, 0] = np.nan, 0, np.inf
    tifffile.imwrite(tmp_path / "a.tiff", xyz)
    result = read_xyz(tmp_path / "a.tiff")
    assert result.dtype == torch.float32
    xyz[0, 0], xyz[2, 2] = 0, 0
    np.testing.assert_allclose(result.numpy(), xyz, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((20, 20, 3), np.uint16), "uint16"),
        (np.ones((20, 20), np.float32), r"\(20, 20\)"),
        (np.zeros((20, 20, 3), np.float32), "0 points"),
        (np.full((20, 20, 3), np.nan, np.float32), "0 points"),
        (np.ones((9, 11, 3), np.float32), "99 points"),
    ],
)
def test_tiffs_that_are_no_clouds_are_refused(tmp_path, array, words):
    tifffile.imwrite(tmp_path / "a.tiff", array)
    with pytest.raises(ValueError, match=words):
        read_xyz(tmp_path / "a.tiff")


def test_a_file_that_is_no_tiff_is_refused(tmp_path):
    for content in (b"", b"hello", b"II*\0\xff\xff\xff\x7f"):
        (tmp_path / "a.tiff").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tiff"):
            read_xyz(tmp_path / "a.tiff")
