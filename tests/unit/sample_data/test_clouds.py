# SPDX-License-Identifier: Apache-2.0
"""Rendered clouds: raw MVTec 3D-AD's layout, correct clouds and masks, equal files for equal seeds."""

import filecmp
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.cli import run_command
from anomalib_pose.data.point_cloud.files import read_xyz
from anomalib_pose.data.point_cloud.preprocessing import isolate_object, plane_distance
from anomalib_pose.sample_data import write_clouds
from anomalib_pose.sample_data.solids import DEFECTS, SOLIDS, build_solid

SIZE = 80


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clouds"))


def write(out: Path, **changes: object) -> Path:
    options = {"size": SIZE, "train": 1, "test_good": 1, "test_per_defect": 1, "progress": False, **changes}
    return write_clouds(out, ("dome",), 3, **options)


def test_layout_is_that_of_mvtec_3d_ad(root: Path) -> None:
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    expected = set()
    for part in ("train/good", "validation/good", "test/good", *(f"test/{kind}" for kind in DEFECTS)):
        expected |= {f"dome/{part}/rgb/000.png", f"dome/{part}/xyz/000.tiff"}
        expected |= {f"dome/{part}/gt/000.png"} if part.startswith("test") else set()
    assert files == expected


def test_points_project_to_their_cells(root: Path) -> None:
    for path in root.rglob("*.tiff"):
        xyz = read_xyz(path).double()
        valid = xyz[..., 2] != 0
        assert 0.9 < valid.double().mean() < 1
        focal = SIZE / 2 / math.tan(0.18)
        points = xyz[valid]
        position = focal * points[:, :2] / points[:, 2:] + SIZE / 2
        torch.testing.assert_close(position, valid.nonzero().flip(1) + 0.5, atol=0.02, rtol=0, check_dtype=False)
        distance = plane_distance(xyz)
        assert distance[0][valid[0]].max() < 1e-3  # the border shows the table
        assert 0.02 < distance[valid].max() < 0.03  # the dome is 24 mm high


def test_masks_are_where_the_defects_are(root: Path) -> None:
    for kind in DEFECTS:
        folder = root / "dome" / "test" / kind
        mask = np.asarray(Image.open(folder / "gt/000.png")) > 127
        image = np.asarray(Image.open(folder / "rgb/000.png")).astype(float)
        assert 5 < mask.sum() < 300
        object_xyz, _, object_mask = isolate_object(
            read_xyz(folder / "xyz/000.tiff"), None, torch.from_numpy(mask * 1.0)
        )
        inside = (object_mask > 0.5) & (object_xyz[..., 2] != 0)
        assert inside.sum() > 0.5 * mask.sum()  # on the object, not on the table
        blue = image[..., 2] > image[..., 0] * 1.2
        if kind == "contamination":
            assert (blue & mask).sum() > 0.5 * mask.sum()
        assert kind == "contamination" or not (blue & mask).any()
    assert not np.asarray(Image.open(root / "dome/test/good/gt/000.png")).any()


@pytest.mark.parametrize(("kind", "sign"), [("bump", 1), ("dent", -1), ("hole", -1), ("contamination", 0)])
def test_defects_move_the_surface_in_the_direction_of_their_kind(kind: str, sign: int) -> None:
    for shape in SOLIDS:
        good = build_solid(shape, "good", np.random.default_rng(5))
        bad = build_solid(shape, kind, np.random.default_rng(5))
        assert good.defect.sum() == 0
        defective = bad.defect > 0
        assert 3 < defective.sum() < 0.2 * len(bad.defect)
        heights = [solid.mesh.vertices[defective, 2].mean() for solid in (good, bad)]
        assert np.sign(round((heights[1] - heights[0]).item(), 4)) == sign


def test_normals_point_outwards() -> None:
    for shape in SOLIDS:
        mesh = build_solid(shape, "good", np.random.default_rng(0)).mesh
        corners = mesh.vertices.double()[mesh.faces.long()]
        face_normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = face_normal.norm(dim=1)
        agree = (face_normal * mesh.normals.double()[mesh.faces.long()].mean(1)).sum(1) > 0
        assert (agree | (area < 1e-9)).all()
        assert mesh.normals[mesh.vertices[:, 2].argmax(), 2] > 0.9


def test_equal_seeds_give_equal_files(root: Path, tmp_path: Path) -> None:
    again = write(tmp_path, test_per_defect=0, train=0)
    for part in ("rgb/000.png", "xyz/000.tiff", "gt/000.png"):
        assert filecmp.cmp(root / "dome/test/good" / part, again / "dome/test/good" / part, shallow=False)


def test_existing_categories_are_not_overwritten(root: Path) -> None:
    with pytest.raises(FileExistsError, match="dome exists"):
        write(root)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"categories": ("cube",)}, "cube"), ({"categories": ()}, "none"), ({"size": 10}, "64"), ({"train": -1}, "-1")],
)
def test_invalid_arguments_are_refused(tmp_path: Path, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_clouds(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_unknown_solids_are_refused() -> None:
    with pytest.raises(ValueError, match="ring, dome, peg"):
        build_solid("cube", "good", np.random.default_rng(0))


def test_the_command_writes_clouds(tmp_path: Path) -> None:
    words = ["--categories", "peg", "--size", "64", "--train", "0", "--test-good", "1", "--test-per-defect", "0"]
    run_command("sample", ["clouds", str(tmp_path / "out"), *words])
    assert (tmp_path / "out/peg/test/good/xyz/000.tiff").is_file()
