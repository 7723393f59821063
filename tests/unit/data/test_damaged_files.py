# SPDX-License-Identifier: Apache-2.0
"""Files with changed, missing and additional bytes are read or refused with one sentence, whatever a parser raises."""

import io
import random
import warnings

import numpy as np
import pytest
import tifffile

from anomalib_pose.data.parsers import parsing
from anomalib_pose.data.point_cloud.files import read_points, read_xyz, write_pcd
from anomalib_pose.data.reference_views.files import read_correspondences
from anomalib_pose.data.reference_views.mesh_files import read_mesh
from anomalib_pose.scene import load_ply, save_ply
from sample_scenes import make_scene

POINTS = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
CHANGES = 60


def _archive(save):
    content = io.BytesIO()
    xyz = np.zeros((32, 32, 3), np.float32)
    save(content, pxy=np.zeros((9, 2), np.int64), is_visible=np.ones(9, bool), xyz=xyz)
    return content.getvalue()


def _pickled():
    content = io.BytesIO()
    xyz = np.zeros((32, 32, 3), np.float32)
    np.save(content, {"pxy": np.zeros((9, 2), np.int64), "is_visible": np.ones(9, bool), "xyz": xyz}, allow_pickle=True)
    return content.getvalue()


def _tiff(**options):
    content = io.BytesIO()
    tifffile.imwrite(content, np.ones((20, 30, 3), np.float32), photometric="minisblack", **options)
    return content.getvalue()


def _written(tmp_path, name, write):
    write(tmp_path / name)
    return (tmp_path / name).read_bytes()


def _mesh(tmp_path, suffix):
    trimesh = pytest.importorskip("trimesh", reason="the extra 'mesh' is not installed")
    return _written(tmp_path, f"box{suffix}", trimesh.creation.box().export)


def _pcd(tmp_path):
    import torch

    return _written(tmp_path, "a.pcd", lambda path: write_pcd(path, torch.from_numpy(POINTS), torch.zeros(200, 3)))


FILES = {
    "correspondences.npz": (read_correspondences, lambda _: _archive(np.savez)),
    "compressed.npz": (read_correspondences, lambda _: _archive(np.savez_compressed)),
    "pickled.npy": (read_correspondences, lambda _: _pickled()),
    "cloud.tiff": (read_xyz, lambda _: _tiff()),
    "lzw.tiff": (read_xyz, lambda _: _tiff(compression="lzw")),
    "cloud.pcd": (read_points, _pcd),
    "splats.ply": (load_ply, lambda folder: _written(folder, "a.ply", lambda path: save_ply(make_scene(9, 1), path))),
    **{
        f"mesh{suffix}": (read_mesh, lambda folder, suffix=suffix: _mesh(folder, suffix))
        for suffix in (".obj", ".ply", ".glb", ".stl", ".off")
    },
}


def _change(content, rng):
    """Change, remove or add bytes, more often in the header."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        position = rng.randrange(min(len(changed), rng.choice((400, 1_000_000))) or 1)
        kind = rng.randrange(4)
        if kind == 0:
            changed[position : position + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[position : position + 8] = rng.choice((b"\xff" * 8, bytes(8)))
        elif kind == 2:
            del changed[position : position + rng.randrange(1, 20)]
        else:
            changed[position:] = changed[position:][: rng.randrange(len(changed))]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # numpy leaves archives open that it cannot read
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_read_or_refused_with_one_sentence(tmp_path, name):
    read, content = FILES[name]
    whole, rng, path = content(tmp_path), random.Random(0), tmp_path / name
    path.write_bytes(whole)
    read(path)
    for _ in range(CHANGES):
        path.write_bytes(_change(whole, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                read(path)
        except ValueError as error:
            assert name in str(error)
            assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), KeyError("a\nb"), MemoryError("x"), EOFError(), AssertionError()]
)
def test_every_error_of_a_parser_names_the_file(tmp_path, error):
    with (
        pytest.raises(ValueError, match=r"a\.x cannot be read as a thing \((\w+)(: .+)?\): copy it again\.$") as caught,
        parsing(tmp_path / "a.x", "a thing", "copy it again"),
    ):
        raise error
    assert type(error).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)
