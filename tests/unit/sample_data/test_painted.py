# SPDX-License-Identifier: Apache-2.0
"""Painted defects lie on the object, change exactly the pixels of their masks, and depend only on the seed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from anomalib_pose.data import PosedFolder
from anomalib_pose.data.files import opengl_matrix
from anomalib_pose.geometry import look_at
from anomalib_pose.sample_data.painted import PAINTED_DEFECTS, DefectSizes, paint_defect
from anomalib_pose.sample_data.painted_queries import write_painted_queries

SIZE = 96
VIEWS = 5


def photograph(seed=0):
    """Make an image of a shaded, speckled disc on a greenish table, and the mask of the disc."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[:SIZE, :SIZE] + 0.5
    inside = np.hypot(u - SIZE / 2, v - SIZE / 2) < SIZE / 3
    shade = 0.4 + 0.5 * u / SIZE
    color = np.array([170, 140, 90]) * shade[..., None] + rng.normal(scale=4, size=(SIZE, SIZE, 3))
    table = np.array([120, 190, 120]) + 20 * (v / SIZE)[..., None]
    return np.clip(np.where(inside[..., None], color, table), 0, 255).astype(np.uint8), inside


def write_object(folder, *, masks=True):
    frames = []
    for index in range(VIEWS):
        image, inside = photograph(index)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / f"{index}.png")
        Image.fromarray(inside.astype(np.uint8) * 255).save(folder / f"{index}_mask.png")
        angle = torch.tensor(1.2 * index, dtype=torch.float64)
        eye = torch.stack([3 * torch.cos(angle), 3 * torch.sin(angle), torch.ones_like(angle)])
        pose = look_at(eye, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0, 1], dtype=torch.float64))
        frame = {"file_path": f"images/{index}.png", "transform_matrix": opengl_matrix(pose)}
        frames.append({**frame, "mask_path": f"{index}_mask.png"} if masks else frame)
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.7, "note": "kept", "frames": frames}))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_object(tmp_path_factory.mktemp("disc"))


@pytest.fixture(scope="module")
def painted(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("painted") / "disc"
    return write_painted_queries(source, out, 3, 4, progress=False)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def digest(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("kind", PAINTED_DEFECTS)
def test_masks_are_the_changed_pixels_and_lie_on_the_object(painted, source, kind):
    for name in ("0", "3"):
        before = pixels(source / "images" / f"{name}.png")
        inside = pixels(source / f"{name}_mask.png") > 127
        changed = (pixels(painted / "queries" / kind / f"{name}.png") != before).any(2)
        mask = pixels(painted / "ground_truth" / kind / f"{name}_mask.png")
        assert set(np.unique(mask)) == {0, 255}
        assert not (changed & (mask == 0)).any()
        assert changed[mask > 0].mean() > 0.95
        assert not (changed & ~inside).any()


def test_good_queries_are_the_held_out_photographs(painted, source):
    assert sorted(path.name for path in (painted / "queries" / "good").iterdir()) == ["0.png", "3.png"]
    for name in ("0.png", "3.png"):
        assert np.array_equal(pixels(painted / "queries" / "good" / name), pixels(source / "images" / name))
    assert sorted(path.name for path in (painted / "train").iterdir()) == ["1.png", "2.png", "4.png"]


def test_the_datamodule_reads_the_files_and_the_true_poses(painted, source):
    data = PosedFolder(painted, "queries", "ground_truth", image_size=48, num_workers=0)
    data.setup()
    original = PosedFolder(source, holdout_every=3, image_size=48, num_workers=0)
    original.setup()
    items = {Path(item.image_path).stem: item for item in data.train_data}
    for item in original.train_data:
        match = items.pop(Path(item.image_path).stem)
        assert torch.equal(item.image, match.image)
        assert torch.equal(item.foreground, match.foreground)
        assert torch.equal(item.camera_to_world, match.camera_to_world)
    assert not items
    truth = {Path(item.image_path).stem: item.camera_to_world for item in original.test_data}
    queries = [data.test_data[index] for index in range(len(data.test_data))]
    assert sorted(int(item.gt_label) for item in queries) == [0] * 2 + [1] * 6
    for item in queries:
        assert torch.equal(item.camera_to_world, truth[Path(item.image_path).stem])
        assert bool(item.gt_mask.any()) == bool(item.gt_label)
    assert json.loads((painted / "transforms.json").read_text())["note"] == "kept"


def test_equal_seeds_give_equal_bytes_and_different_seeds_do_not(source, painted, tmp_path):
    for name, seed in (("same", 4), ("different", 5)):
        write_painted_queries(source, tmp_path / name, 3, seed, progress=False)
    assert digest(tmp_path / "same") == digest(painted)
    different = digest(tmp_path / "different")
    differing = {name for name, value in digest(painted).items() if different[name] != value}
    assert differing == {
        name for name in different if "queries/good" not in name and name.startswith(("queries", "ground"))
    }


def test_white_makes_all_pixels_outside_the_mask_white(source, tmp_path):
    write_painted_queries(source, tmp_path / "white", 3, white=True, per_image=2, progress=False)
    inside = pixels(source / "0_mask.png") > 127
    for file in ("queries/good/0.png", "queries/missing/0_0.png", "queries/missing/0_1.png"):
        assert (pixels(tmp_path / "white" / file)[~inside] == 255).all()
    assert (pixels(tmp_path / "white" / "train" / "1.png")[~inside] == 255).all()
    gone = pixels(tmp_path / "white" / "ground_truth" / "missing" / "0_0_mask.png") > 0
    assert np.median(pixels(tmp_path / "white" / "queries" / "missing" / "0_0.png")[gone]) == 255


def test_sizes_are_fractions_of_the_object():
    image, inside = photograph()
    for share in (0.01, 0.1):
        sizes = DefectSizes(stain_area=(share, share), missing_area=(share, share))
        for kind in ("stain", "missing"):
            areas = [
                paint_defect(image, inside, kind, np.random.default_rng(seed), sizes)[1].sum() for seed in range(5)
            ]
            # the soft edge fades within the area, and its faintest part is cut off
            assert 0.7 * share * inside.sum() < np.median(areas) <= share * inside.sum() + 1
    lengths = []
    for length in (0.2, 0.6):
        sizes = DefectSizes(scratch_length=(length, length), scratch_width=(0.02, 0.02))
        areas = [
            paint_defect(image, inside, "scratch", np.random.default_rng(seed), sizes)[1].sum() for seed in range(5)
        ]
        lengths.append(np.median(areas))
    assert 2 < lengths[1] / lengths[0] < 4


def test_defects_stay_on_the_object():
    image, _ = photograph()
    thin = np.zeros((SIZE, SIZE), bool)
    thin[40:56, 10:86] = True
    sizes = DefectSizes(scratch_length=(1, 1), scratch_width=(0.05, 0.05))
    for kind in PAINTED_DEFECTS:
        for seed in range(8):
            defective, mask = paint_defect(image, thin, kind, np.random.default_rng(seed), sizes)
            assert not (mask & ~thin).any()
            assert np.array_equal(defective[~thin], image[~thin])


def test_a_stain_is_modulated_by_the_shading_of_the_surface():
    image, inside = photograph()
    sizes = DefectSizes(stain_area=(0.4, 0.4))
    defective, mask = paint_defect(image, inside, "stain", np.random.default_rng(0), sizes)
    inner = ndimage.binary_erosion(mask, iterations=6)  # the edge is soft
    luminance = [rgb.mean(2)[inner] for rgb in (image, defective)]
    assert np.corrcoef(*luminance)[0, 1] > 0.9
    spreads = [values.std() / values.mean() for values in luminance]
    assert spreads[1] > 0.8 * spreads[0]
    assert luminance[1].mean() < 0.7 * luminance[0].mean()


def test_a_missing_piece_has_the_color_of_the_background_beside_it():
    image, inside = photograph()
    sizes = DefectSizes(missing_area=(0.05, 0.05))
    defective, mask = paint_defect(image, inside, "missing", np.random.default_rng(1), sizes)
    inner = ndimage.binary_erosion(mask, iterations=2)
    beside = image[~inside].mean(0)
    assert np.abs(defective[inner] - beside).max() < 15
    assert np.abs(image[inner].mean(0) - beside).max() > 40


def test_errors_name_the_missing_input(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"no transforms\.json"):
        write_painted_queries(tmp_path, out)
    bare = write_object(tmp_path / "bare", masks=False)
    with pytest.raises(ValueError, match="has no mask of the object"):
        write_painted_queries(bare, out, progress=False)
    assert not out.exists()
    with pytest.raises(ValueError, match="every should be 2 or more"):
        write_painted_queries(source, out, every=1)
    with pytest.raises(ValueError, match="stain_area should be"):
        DefectSizes(stain_area=(0.3, 0.1))
    out.mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        write_painted_queries(source, out, progress=False)
    with pytest.raises(ValueError, match="No place for a defect"):
        paint_defect(*[array[:4, :4] for array in photograph()], "stain", np.random.default_rng(0))
    with pytest.raises(ValueError, match="one of stain, missing, scratch"):
        paint_defect(*photograph(), "dent", np.random.default_rng(0))
