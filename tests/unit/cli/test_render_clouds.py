# SPDX-License-Identifier: Apache-2.0
"""Raw data sets are rendered to the published layouts, and the data modules read the result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.cli import render_clouds
from anomalib_pose.data import EyecandiesRendered, MVTec3DRendered, Real3DADRendered
from anomalib_pose.data.point_cloud.files import write_pcd
from anomalib_pose.data.point_cloud.render_dataset import DATASETS
from anomalib_pose.render.points import VIEW_ANGLES
from anomalib_pose.sample_data import write_clouds

SIZE = 32


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw")
    return write_clouds(out, ("ring",), 1, 80, train=0, test_good=1, test_per_defect=1, progress=False)


def items(datamodule):
    datamodule.setup()
    return {"/".join(Path(item.image_path).parts[-3:]): item for item in datamodule.test_data}


def test_mvtec3d_on_disk_equals_mvtec3d_rendered_in_memory(run_command, raw, tmp_path):
    run_command("render-clouds", raw, tmp_path, "--size", SIZE, "--views", "5")
    arguments = {"category": "ring", "train_category": None, "size": SIZE, "views": 5, "num_workers": 0}
    memory, disk = items(MVTec3DRendered(raw, **arguments)), items(MVTec3DRendered(tmp_path, **arguments))
    assert (sorted(memory), len(memory)) == (sorted(disk), 5)
    for name, item in memory.items():
        for field in ("gt_mask", "points", "valid", "views", "view_masks", "pixels", "visible", "gt_label"):
            assert torch.equal(getattr(item, field), getattr(disk[name], field)), (name, field)
        torch.testing.assert_close(item.image, disk[name].image, atol=1.5 / 255, rtol=0)
    content = json.loads((tmp_path / "all_meta.json").read_text())["test"]["ring"]
    assert sorted(entry["specie_name"] for entry in content) == ["bump", "contamination", "dent", "good", "hole"]
    assert sum(entry["anomaly"] for entry in content) == 4


def test_a_category_that_fails_is_not_written(command_error, raw, tmp_path):
    broken = tmp_path / "raw" / "ring" / "test" / "good"
    for part in ("xyz", "rgb", "gt"):
        (broken / part).mkdir(parents=True)
    (broken / "xyz" / "000.tiff").write_bytes(b"nothing")
    Image.new("RGB", (80, 80)).save(broken / "rgb" / "000.png")
    assert "000.tiff cannot be read" in command_error(
        "render-clouds", tmp_path / "raw", tmp_path / "out", "--size", SIZE
    )
    assert not list((tmp_path / "out").iterdir())


def test_an_existing_category_is_not_replaced(command_error, raw, tmp_path):
    (tmp_path / "ring").mkdir()
    assert "exists already" in command_error("render-clouds", raw, tmp_path)


def test_the_source_is_never_replaced(command_error, raw):
    before = sorted(raw.rglob("*"))
    assert "would remove" in command_error("render-clouds", str(raw), str(raw), "--overwrite")
    assert sorted(raw.rglob("*")) == before


def test_missing_folders_are_named(command_error, raw, tmp_path):
    assert "There is no folder" in command_error("render-clouds", tmp_path / "none", tmp_path / "out")
    assert "no categories" in command_error("render-clouds", tmp_path, tmp_path / "out")
    assert "look at --dataset" in command_error("render-clouds", raw, tmp_path / "out", "--dataset", "real3d")


def ball(count, seed):
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(points, dim=1) * 30


@pytest.fixture
def real3d(tmp_path):
    """Plain clouds in Real3D-AD's layout."""
    folder = tmp_path / "raw" / "shell"
    for part in ("train", "test", "gt"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate(("1_good", "2_bulge", "3_sink_cut")):
        points = ball(1500, number)
        write_pcd(folder / "test" / f"{name}.pcd", points.float(), torch.ones(1500, 3))
        if number:
            np.savetxt(folder / "gt" / f"{name}.txt", torch.cat([points, (points[:, :1] > 22).double()], 1).numpy())
    return tmp_path / "raw"


def test_real3d_is_read_as_it_was_rendered(run_command, real3d, tmp_path):
    out = tmp_path / "out"
    run_command("render-clouds", real3d, out, "--dataset", "real3d", "--size", SIZE)
    cloud_items = items(Real3DADRendered(out, "shell", None, size=SIZE, num_workers=0))
    assert sorted(cloud_items) == [f"2d_rendering/{name}/view_2.png" for name in ("1_good", "2_bulge", "3_sink_cut")]
    for name, item in cloud_items.items():
        points = item.points.reshape(-1, 3)
        assert len(torch.unique(points, dim=0)) == SIZE * SIZE
        assert torch.equal(item.gt_mask.flatten(), (points[:, 0] > 22) & ("good" not in name))
        assert (int(item.gt_label), len(item.views)) == ("good" not in name, 9)
    entry = json.loads((out / "shell_meta.json").read_text())["test"]["shell"][0]
    assert "d2_img_path" not in entry


def test_points_of_real3d_without_a_measurement_are_dropped(run_command, real3d, tmp_path, caplog):
    run_command("render-clouds", real3d, tmp_path / "clean", "--dataset", "real3d", "--size", SIZE)
    path = real3d / "shell" / "gt" / "2_bulge.txt"
    path.write_text("0 0 0 0\nnan 1 2 1\n" + path.read_text())
    points = ball(1500, 0).float()
    points = torch.cat([torch.zeros(3, 3), points, torch.full((2, 3), torch.nan)])
    write_pcd(real3d / "shell" / "test" / "1_good.pcd", points, torch.ones(1505, 3))
    run_command("render-clouds", real3d, tmp_path / "out", "--dataset", "real3d", "--size", SIZE)
    for line in ("2_bulge.txt: 2 of 1502 points are zero", "1_good.pcd: 5 of 1505 points are zero"):
        assert line in caplog.text
    for clean in (tmp_path / "clean").rglob("*.*"):
        assert (tmp_path / "out" / clean.relative_to(tmp_path / "clean")).read_bytes() == clean.read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "There is no file"), ("1 2 3 0\n", "100 or more"), ("1 2 3\n" * 200, "four"), ("a b c d\n", "a line")],
)
def test_labels_of_real3d_are_checked(command_error, real3d, tmp_path, content, words):
    path = real3d / "shell" / "gt" / "2_bulge.txt"
    path.unlink()
    if content is not None:
        path.write_text(content)
    error = command_error("render-clouds", real3d, tmp_path / "out", "--dataset", "real3d", "--size", SIZE)
    assert words in error
    assert "2_bulge.txt" in error


def write_ply(path, points):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    head += "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n"
    path.write_bytes(head.encode() + points.astype("<f4").tobytes())


@pytest.fixture
def eyecandies(tmp_path):
    """Organized clouds of a box on a table, a tenth of whose axes x, -z, y face the viewer."""
    side = 64
    y, x = np.mgrid[:side, :side] * 0.001
    z = np.full((side, side), 0.5)
    z[20:44, 22:42] -= 0.02
    mask = np.zeros((side, side), np.uint8)
    mask[24:34, 24:34] = 255
    camera = np.stack([x, y, z], -1).reshape(-1, 3)
    stored = np.stack([camera[:, 0], -camera[:, 2], camera[:, 1]], 1) * 10
    for kind in ("good", "anomaly"):
        folder = tmp_path / "raw" / "Lollipop" / "test" / kind
        write_ply(folder / "pcd" / "7.ply", stored)
        for part, array in (("rgb", np.full((side, side, 3), 90, np.uint8)), ("gt", mask * (kind != "good"))):
            (folder / part).mkdir()
            Image.fromarray(array).save(folder / part / "7.png")
    return tmp_path / "raw"


def test_eyecandies_are_read_as_they_were_rendered(run_command, eyecandies, tmp_path):
    out = tmp_path / "out"
    run_command("render-clouds", eyecandies, out, "--dataset", "eyecandies", "--size", SIZE)
    cloud_items = items(EyecandiesRendered(out, "Lollipop", None, size=SIZE, num_workers=0))
    item = cloud_items["anomaly/rgb/7.png"]
    points = item.points[item.valid]
    assert points[:, 2].amax() == pytest.approx(0.48, abs=1e-5)  # the box without the table
    assert points[:, 0].amin() == pytest.approx(0.022, abs=2e-3)
    assert (item.gt_mask & item.valid).sum() == item.gt_mask.sum() > 0
    assert item.view_masks.any()
    assert not cloud_items["good/rgb/7.png"].gt_mask.any()


def test_points_of_eyecandies_are_counted(command_error, eyecandies, tmp_path):
    write_ply(eyecandies / "Lollipop" / "test" / "good" / "pcd" / "7.ply", np.ones((200, 3)))
    assert "200 points" in command_error(
        "render-clouds", eyecandies, tmp_path / "out", "--dataset", "eyecandies", "--size", SIZE
    )


def test_the_choices_of_the_command_are_those_of_the_library():
    assert tuple(DATASETS) == render_clouds._DATASETS
    assert tuple(VIEW_ANGLES) == render_clouds._VIEWS
