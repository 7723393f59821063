# SPDX-License-Identifier: Apache-2.0
"""Readers of clouds on files written byte by byte, and on files that are not clouds."""

import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch

from anomalib_pose.data.point_cloud.files import read_measured_points, read_points, read_xyz, write_pcd

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
        (lambda data: data.replace(b"DATA binary", b"DATA binary_compressed"), "cut short: its compressed data needs"),
        (
            lambda data: data.replace(b"DATA binary", b"DATA binary_zip"),
            "'binary_zip', expected ascii, binary, binary_",
        ),
        (lambda data: data.replace(b"SIZE 4 4 4 1", b"SIZE 4 4 8 1"), "cut short"),
        (lambda data: data.replace(b"COUNT 1 1 1 2", b"COUNT 1 1 2 2"), "(cut short|one number as each of x, y and z)"),
        (lambda data: data.replace(b"COUNT 1 1 1 2", b"COUNT 1 1 1 -2"), "header"),
        (lambda data: data.replace(b"COUNT 1 1 1 2", b"COUNT 1 1 1 99999999999"), "header"),
        (lambda data: data.replace(b"COUNT 1 1 1 2", b"COUNT 1 0 1 1"), "one number as each of x, y and z"),
        (lambda data: data.replace(f"POINTS {COUNT}".encode(), b"POINTS 999999999999999999"), "cut short"),
        (lambda data: data.replace(f"POINTS {COUNT}".encode(), b"POINTS -1"), "-1 points"),
        (lambda data: data.replace(f"POINTS {COUNT}".encode(), b"POINTS 0"), "0 points"),
        (lambda data: data.replace(f"POINTS {COUNT}".encode(), b"POINTS"), "header"),
        (lambda data: b"", "no line DATA"),
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


FIELDS = {
    "plain": [("x", "<f4"), ("y", "<f4"), ("z", "<f4")],
    "double": [("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("intensity", "<f4")],
    "mixed": [("intensity", "<u2"), ("z", "<f8"), ("x", "<f4"), ("ring", "i1"), ("y", "<f4"), ("rgb", "<f4")],
    "histogram": [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("histogram", "<f4", (33,)), ("rgba", "<u4")],
    "normals": [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("normal_x", "<f4"), ("label", "<i8")],
}


def lzf(data, repeats):
    """Compress as the format describes: runs of up to 32 literal bytes, and repetitions of earlier bytes."""
    out, position = b"", 0
    while position < len(data):
        start = data.rfind(data[position : position + 12], max(0, position - 8000), position) if repeats else -1
        if start >= 0 and position + 12 <= len(data):
            distance = position - start - 1
            out += bytes([7 << 5 | distance >> 8, 12 - 9, distance & 255])
            position += 12
        else:
            out += bytes([len(data[position : position + 32]) - 1]) + data[position : position + 32]
            position += 32
    return out


def pcd_of(path, fields, layout, *, points=POINTS, height=1, compress=lambda data: lzf(data, True), ending="\n"):
    """Write points and zeros as the other fields."""
    table = np.zeros(len(points), fields)
    for axis, values in zip("xyz", points.T, strict=True):
        table[axis] = values
    letters = {"f": "F", "u": "U", "i": "I"}
    bases = [(name, table.dtype[name].base, int(np.prod(table.dtype[name].shape))) for name in table.dtype.names]
    header = ["# .PCD v0.7", "VERSION 0.7", "FIELDS " + " ".join(name for name, _, _ in bases)]
    header += ["SIZE " + " ".join(str(base.itemsize) for _, base, _ in bases)]
    header += ["TYPE " + " ".join(letters[base.kind] for _, base, _ in bases)]
    header += ["COUNT " + " ".join(str(count) for _, _, count in bases), f"WIDTH {len(points) // height}"]
    header += [f"HEIGHT {height}", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(points)}", f"DATA {layout}", ""]
    if layout == "ascii":
        rows = [" ".join(str(v) for name in table.dtype.names for v in np.ravel(row[name])) for row in table]
        body = (ending.join(rows) + ending).encode()
    elif layout == "binary":
        body = table.tobytes()
    else:
        columns = b"".join(np.ascontiguousarray(table[name]).tobytes() for name in table.dtype.names)
        packed = compress(columns)
        body = struct.pack("<II", len(packed), len(columns)) + packed
    path.write_bytes(ending.join(header).encode() + body)
    return path


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("layout", ["ascii", "binary", "binary_compressed"])
@pytest.mark.parametrize("height", [1, 8])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_pcd_with_other_fields_sizes_and_shapes(tmp_path, fields, layout, height, ending):
    path = pcd_of(tmp_path / "a.pcd", FIELDS[fields], layout, height=height, ending=ending)
    np.testing.assert_allclose(read_points(path).points, POINTS, rtol=1e-6)


@pytest.mark.parametrize("compress", [lambda d: lzf(d, False), lambda d: lzf(d, True), imagecodecs.lzf_encode])
def test_compressed_pcd_of_every_compressor(tmp_path, compress):
    path = pcd_of(tmp_path / "a.pcd", FIELDS["histogram"], "binary_compressed", compress=compress)
    read = read_points(path)
    np.testing.assert_array_equal(read.points, POINTS)
    assert read.colors.max() == 0


def test_compressed_pcd_written_by_hand(tmp_path):
    """A literal 0 and repetitions of it, and literals: x is 0 but for the last points, y and z count."""
    count = 120
    zeros = bytes([0, 0]) + bytes([7 << 5, 255, 0]) + bytes([7 << 5, (4 * count - 1 - 264) - 9, 0])
    numbers = np.arange(1, count + 1, dtype="<f4").tobytes()
    literals = b"".join(bytes([31]) + numbers[i : i + 32] for i in range(0, len(numbers), 32))
    header = (
        "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 120\nHEIGHT 1\nPOINTS 120\nDATA binary_compressed\n"
    )
    packed = zeros + literals + literals
    (tmp_path / "a.pcd").write_bytes(header.encode() + struct.pack("<II", len(packed), 12 * count) + packed)
    expected = np.stack([np.zeros(count), np.arange(1, count + 1), np.arange(1, count + 1)], 1)
    np.testing.assert_array_equal(read_points(tmp_path / "a.pcd").points, expected)


@pytest.mark.parametrize(
    ("compress", "words"),
    [
        (lambda data: b"", r"0 compressed bytes for 1440, but its 120 points need 1440"),
        (lambda data: lzf(data, True)[:-5], "damaged compressed data"),
        (lambda data: lzf(data + bytes(4), False), "damaged compressed data"),
        (lambda data: bytes([7 << 5 | 31, 255, 255]) * 200, "damaged compressed data"),
        (lambda data: bytes([31]) * 300, "damaged compressed data"),
        (lambda data: bytes([5, 1, 2]), "0?3 compressed bytes for 1440"),
    ],
)
def test_damaged_compressed_pcd_files_are_refused(tmp_path, compress, words):
    path = pcd_of(tmp_path / "a.pcd", FIELDS["plain"], "binary_compressed", compress=compress)
    with pytest.raises(ValueError, match=rf"a\.pcd.*{words}"):
        read_points(path)


def test_compressed_sizes_that_do_not_match_are_refused_before_memory_is_taken(tmp_path):
    path = pcd_of(tmp_path / "a.pcd", FIELDS["plain"], "binary_compressed")
    whole = path.read_bytes()
    for old, new in ((b"POINTS 120", b"POINTS 121"), (b"POINTS 120", b"POINTS 99999999999999")):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match=r"a\.pcd has .* compressed bytes for 1440, but its \d+ points need"):
            read_points(path)
    start = whole.index(b"binary_compressed\n") + len(b"binary_compressed\n")
    path.write_bytes(whole[:start] + struct.pack("<II", 2**32 - 1, 1440) + whole[start + 8 :])
    with pytest.raises(ValueError, match=r"a\.pcd is cut short: its compressed data needs 4294967303 bytes"):
        read_points(path)
    for length in range(start, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.pcd is cut short"):
            read_points(path)


@pytest.mark.parametrize("layout", ["ascii", "binary", "binary_compressed", "ply"])
@pytest.mark.parametrize(
    "empty", [(np.nan, np.nan, np.nan), (1, np.nan, 2), (0, 0, 0), (-0.0, 0, 0), (np.inf, 1, 1), (1e60, 0, 0)]
)
def test_points_without_a_measurement_are_nan_and_dropped_with_their_number(tmp_path, caplog, layout, empty):
    points = np.concatenate([POINTS.astype(float), np.tile(empty, (7, 1))])[np.random.default_rng(3).permutation(127)]
    if layout == "ply":
        header = "ply\nformat binary_big_endian 1.0\nelement vertex 127\n" + "".join(
            f"property double {axis}\n" for axis in "xyz"
        )
        path = tmp_path / "a.ply"
        path.write_bytes(f"{header}end_header\n".encode() + points.astype(">f8").tobytes())
    else:
        path = pcd_of(tmp_path / "a.pcd", FIELDS["double"], layout, points=points)
    read = read_points(path).points
    assert read.shape == (127, 3)
    assert int(read.isnan().all(1).sum()) == int(read.isnan().any(1).sum()) == 7
    assert not caplog.records
    measured = read_measured_points(path)
    assert measured.shape == (120, 3)
    torch.testing.assert_close(measured.sort(0).values, torch.from_numpy(POINTS).sort(0).values)
    assert f"{path}: 7 of 127 points are zero or not finite and are dropped." in caplog.text


def test_clouds_of_zeros_are_empty(tmp_path):
    with pytest.raises(ValueError, match=r"a\.pcd has 0 points"):
        read_points(pcd_of(tmp_path / "a.pcd", FIELDS["plain"], "binary", points=np.zeros((200, 3))))


def test_a_tiff_that_states_a_huge_size_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tiff", np.ones((20, 20, 3), np.float32), photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "a.tiff", mode="r+b") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[tag].overwrite(1_000_000)
    with pytest.raises(ValueError, match=r"a\.tiff cannot be read as a \.tiff"):
        read_xyz(tmp_path / "a.tiff")


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
