# SPDX-License-Identifier: Apache-2.0
"""A data set with one fault is read as before, read with one warning, or refused in one sentence.

To extend the suite, add one line to ``FAULTS``.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from anomalib_pose.data import MAD, BrokenChairs, MVTec3DRendered, PosedFolder
from anomalib_pose.sample_data.chairs import write_chairs
from anomalib_pose.sample_data.clouds import write_clouds
from anomalib_pose.sample_data.mad import write_mad

DATAMODULES: dict[str, Callable[[Path], Any]] = {
    "MAD": lambda root: MAD(root, "car", num_workers=0),
    "PosedFolder": lambda root: PosedFolder(root / "car", "test", root / "car" / "ground_truth", num_workers=0),
    "BrokenChairs": lambda root: BrokenChairs(root, eval_views=5, flip=False, light=False, num_workers=0),
    "MVTec3DRendered": lambda root: MVTec3DRendered(root, "ring", train_category=None, size=64, num_workers=0),
}
CLOUDS, CHAIRS, VIEW = ("MVTec3DRendered",), ("BrokenChairs",), "shapes/shape_2/mv_images/2_3.0_0_20.png"
POSED = ("MAD", "PosedFolder")


@dataclass(frozen=True)
class Fault:
    """One fault and its expectation.

    Args:
        name: description of the fault.
        datamodules: names of the datamodules that meet it.
        damage: makes the fault in the data set's folder.
        outcome: ``"same"``: the items of the intact data set, in silence; ``"reported"``: items and a warning;
            ``"refused"``: an error.
        pattern: regular expression that the warning or error must contain.
    """

    name: str
    datamodules: tuple[str, ...]
    damage: Callable[[Path], Any]
    outcome: Literal["same", "reported", "refused"]
    pattern: str = ""


def edit_json(path: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = json.loads((root / path).read_text())
        change(content)
        (root / path).write_text(json.dumps(content))

    return damage


def frames(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change all frames of the poses."""
    return edit_json("car/transforms.json", lambda content: [change(frame) for frame in content["frames"]])


def first_frame(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the first frame of the poses."""
    return edit_json("car/transforms.json", lambda content: change(content["frames"][0]))


def camera(**values: Any) -> Callable[[Path], None]:
    return edit_json("car/transforms.json", lambda content: content.update(values))


def copy(source: str, *targets: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for target in targets:
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / source, root / target)

    return damage


def write(path: str, content: bytes) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)

    return damage


def rename(source: str, target: str) -> Callable[[Path], None]:
    return lambda root: (root / source).rename(root / target)


def recode(pattern: str, convert: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Convert all images of a pattern, from OpenCV's channels to OpenCV's channels."""

    def damage(root: Path) -> None:
        paths = sorted(root.glob(pattern))
        assert paths
        for path in paths:
            assert cv2.imwrite(str(path), convert(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))

    return damage


def drop(fraction: float) -> Callable[[Path], None]:
    """Delete a fraction of the training images."""

    def damage(root: Path) -> None:
        paths = sorted(root.glob("car/train/good/*.png"))
        for path in paths[: round(fraction * len(paths))]:
            path.unlink()

    return damage


def remove(*paths: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        for path in paths:
            (shutil.rmtree if (root / path).is_dir() else Path.unlink)(root / path)

    return damage


def copy_first(pattern: str, suffix: str) -> Callable[[Path], None]:
    """Copy the first file of a pattern to the same name with another suffix."""

    def damage(root: Path) -> None:
        path = min(root.glob(pattern))
        shutil.copy(path, path.with_suffix(suffix))

    return damage


def hide_a_copy(pattern: str) -> Callable[[Path], None]:
    """Copy the first file of a pattern to an AppleDouble name beside it."""

    def damage(root: Path) -> None:
        path = min(root.glob(pattern))
        shutil.copy(path, path.with_name(f"._{path.name}"))

    return damage


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Change the name of the image in all frames."""
    return frames(lambda frame: frame.update(file_path=change(frame["file_path"])))


def set_number(frame: dict[str, Any], column: int, value: float) -> None:
    """Set a number in the first row of a pose."""
    frame["transform_matrix"][0][column] = value


def truncate(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes((root / path).read_bytes()[:60])


def cells(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Change the cells of the good cloud."""

    def damage(root: Path) -> None:
        path = root / "ring/test/good/xyz/000.tiff"
        tifffile.imwrite(path, change(tifffile.imread(path)))

    return damage


def positions(value: float) -> Callable[[Path], None]:
    """Set the positions on the surface of one reference view."""

    def damage(root: Path) -> None:
        path = min(root.glob(VIEW)).with_suffix(".npy")
        table = np.load(path, allow_pickle=True).item()
        table["xyz"] = np.full_like(table["xyz"], value)
        np.save(path, np.array(table, dtype=object), allow_pickle=True)

    return damage


def box(*numbers: Any) -> Callable[[Path], None]:
    """Set the box of the defect of the last chair."""

    def damage(root: Path) -> None:
        path = next(root.glob("annotations/2/info*.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"2d_bbox": numbers}))

    return damage


def second_shape(root: Path) -> None:
    for path in list(root.glob("shapes/shape_2/mv_images/2_3.0_0_*")):
        shutil.copy(path, path.with_name(path.name.replace("2_", "7_", 1)))


def remove_all(pattern: str) -> Callable[[Path], None]:
    return lambda root: [path.unlink() for path in list(root.glob(pattern))]


def rename_all(pattern: str, suffix: str) -> Callable[[Path], None]:
    return lambda root: [path.rename(path.with_suffix(suffix)) for path in list(root.glob(pattern))]


def upper_case_anomaly(root: Path) -> None:
    for path in list(root.rglob("*anomaly*")):
        path.rename(path.with_name(path.name.replace("anomaly", "ANOMALY")))


IMAGE, TEST, MASKS = "car/train/good/0.png", "car/test/good/0.png", "car/ground_truth/*/*.png"

FAULTS = [
    Fault("hidden image", POSED, copy(TEST, "car/test/good/.hidden.png", "car/test/good/._0.png"), "same"),
    Fault("notebook checkpoints", POSED, copy(TEST, "car/test/.ipynb_checkpoints/0.png"), "same"),
    Fault("nested checkpoints", POSED, copy(TEST, "car/test/good/.ipynb_checkpoints/0.png"), "same"),
    Fault("folder of a Mac archive", POSED, copy(TEST, "car/test/__MACOSX/0.png"), "same"),
    Fault("thumbnails", POSED, write("car/test/good/Thumbs.db", b"\0"), "same"),
    Fault("our leftover", POSED, write("car/test/good/.0.png.partial", b"\0"), "same"),
    Fault("good in upper case", POSED, rename("car/test/good", "car/test/Good"), "same"),
    Fault("normal", POSED, rename("car/test/good", "car/test/normal"), "same"),
    Fault("OK", POSED, rename("car/test/good", "car/test/OK"), "same"),
    Fault("no good images", POSED, remove("car/test/good"), "reported", "good"),
    Fault("suffix in upper case", POSED, rename(TEST, "car/test/good/0.PNG"), "same"),
    Fault("byte order mark", POSED, lambda root: (root / "car/transforms.json").write_bytes(
        b"\xef\xbb\xbf" + (root / "car/transforms.json").read_bytes()), "same"),
    Fault("backslashes", POSED, renamed(lambda name: name.replace("/", "\\")), "same"),
    Fault("no suffix", POSED, renamed(lambda name: name.removesuffix(".png")), "same"),
    Fault("paths of another machine", POSED, renamed(
        lambda name: "/home/me/set/car/" + name.removeprefix("./")), "same"),
    Fault("one image missing", POSED, remove(IMAGE), "reported", r"0\.png"),
    Fault("most images missing", POSED, drop(0.75), "refused", "images"),
    Fault("image without pose", POSED, copy(IMAGE, "car/train/good/extra.png"), "reported", r"extra\.png"),
    Fault("no frames", POSED, camera(frames=[]), "refused", "frames"),
    Fault("poses cut off", POSED, truncate("car/transforms.json"), "refused", r"transforms\.json"),
    Fault("NaN pose", POSED, first_frame(lambda frame: set_number(frame, 3, float("nan"))), "refused", "NaN"),
    Fault("pose with scale", POSED, first_frame(lambda frame: set_number(frame, 0, 5.0)), "refused", "rigid"),
    Fault("pose without float32", POSED, first_frame(lambda frame: set_number(frame, 3, 1e60)), "refused", "0"),
    Fault("no focal length", POSED, camera(camera_angle_x=0.0), "refused", "camera_angle_x"),
    Fault("focal length of a pinhole", POSED, camera(fl_x=1e-9), "refused", "focal|fl_x"),
    Fault("endless focal length", POSED, camera(fl_x=1e12), "refused", "focal|fl_x"),
    Fault("fisheye", POSED, camera(camera_model="OPENCV_FISHEYE", k1=0.1), "refused", "OPENCV_FISHEYE"),
    Fault("distortion in other units", POSED, camera(k1=1e20), "refused", "distortion"),
    Fault("zero distortion", POSED, camera(camera_model="OPENCV", k1=0.0, k2=0.0, p1=0.0, p2=0.0), "same"),
    Fault("truncated training image", POSED, truncate(IMAGE), "refused", r"0\.png"),
    Fault("truncated query", POSED, truncate(TEST), "refused", r"0\.png"),
    Fault("query of another aspect", POSED, recode(TEST, lambda image: image[:30]), "refused", r"0\.png"),
    Fault("images of 16 bits", POSED, recode("car/*/good/*.png", lambda image: image.astype(np.uint16) * 257), "same"),
    Fault("masks of 0 and 1", POSED, recode(MASKS, lambda mask: mask // 255), "same"),
    Fault("masks of 16 bits", POSED, recode(MASKS, lambda mask: mask.astype(np.uint16) * 257), "same"),
    Fault("masks of label ids", POSED, recode(MASKS, lambda mask: mask // 255 * 3), "same"),
    Fault("masks in color", POSED, recode(MASKS, lambda mask: np.dstack([0 * mask, 0 * mask, mask])), "same"),
    Fault("masks in the alpha channel", POSED, recode(MASKS, lambda mask: np.dstack([0 * mask] * 3 + [mask])), "same"),
    Fault("empty mask of a defect", POSED, recode(MASKS, lambda mask: 0 * mask), "reported", r"0_mask\.png"),
    Fault("mask of another size", POSED, recode(MASKS, lambda mask: mask[:20]), "refused", r"0_mask\.png"),
    Fault("inverted masks", POSED, recode(MASKS, lambda mask: 255 - mask), "reported", r"0_mask\.png.*inverted"),
    Fault("two masks of one image", POSED, copy_first(MASKS, ".jpg"), "refused", r"2 masks.*0_mask\.jpg"),
    Fault("two images with one mask", POSED, copy_first("car/test/[!g]*/*.png", ".PNG"), "reported", "have one mask"),
    Fault("images of 12 bits", POSED, recode(
        "car/*/good/*.png", lambda image: image.astype(np.uint16) * 16), "reported", "12 bits"),
    Fault("images in formats that are not read", POSED, copy(TEST, "car/test/good/7.heic"), "reported", r"7\.heic"),
    Fault("images in a folder too deep", POSED, copy(TEST, "car/test/good/more/7.png"), "reported", "good/more"),
    Fault("loop of folders", POSED, lambda root: (root / "car/test/good/loop").symlink_to(root / "car/test"), "same"),
    Fault("transposed poses", POSED, frames(
        lambda frame: frame.update(transform_matrix=list(zip(*frame["transform_matrix"], strict=True)))),
        "refused", "last row"),
    Fault("numbers as text", POSED, camera(camera_angle_x="0.7"), "refused", "camera_angle_x"),
    Fault("pose of another type", POSED, first_frame(
        lambda frame: frame.update(transform_matrix={})), "refused", "transform_matrix"),
    Fault("endless integer in a pose", POSED, first_frame(
        lambda frame: set_number(frame, 3, 10**400)), "refused", "transform_matrix"),
    Fault("no masks", ("MAD",), remove("car/ground_truth"), "refused", "mask"),
    Fault("hidden photograph", ("MVTec3DRendered",), hide_a_copy("ring/test/good/rgb/*.png"), "same"),
    Fault("truncated cloud", ("MVTec3DRendered",), truncate("ring/test/good/xyz/000.tiff"), "refused", r"000\.tiff"),
    Fault("cloud missing", ("MVTec3DRendered",), remove("ring/test/good/xyz/000.tiff"), "reported", r"no cloud.*\.png"),
    Fault("mask missing", ("MVTec3DRendered",), remove("ring/test/hole/gt/000.png"), "refused", r"\.png"),
    Fault("two clouds of one name", CLOUDS, copy_first("ring/test/good/xyz/*.tiff", ".tif"), "refused", r"000\.tif"),
    Fault("two photographs of one cloud", CLOUDS, copy_first("ring/test/good/rgb/*.png", ".bmp"), "refused", "000"),
    Fault("two masks of one cloud", CLOUDS, copy_first("ring/test/hole/gt/*.png", ".bmp"), "refused", r"000\.bmp"),
    Fault("folder without clouds", CLOUDS, remove("ring/test/hole/xyz"), "reported", "no xyz.*hole"),
    Fault("cloud in millimeters", CLOUDS, cells(lambda xyz: xyz * 1000), "refused", r"000\.tiff.*meters"),
    Fault("cloud without float32", CLOUDS, cells(lambda xyz: xyz.astype(np.float64) * 1e300), "refused", r"000\.tiff"),
    Fault("cloud beyond any unit", CLOUDS, cells(lambda xyz: xyz * np.float32(1e20)), "refused", r"000\.tiff.*meters"),
    Fault("cloud of zeros", CLOUDS, cells(lambda xyz: xyz * 0), "refused", r"000\.tiff has 0 points"),
    Fault("cloud of NaN", CLOUDS, cells(lambda xyz: xyz * np.nan), "refused", r"000\.tiff has 0 points"),
    Fault("cloud of 64 bits", CLOUDS, cells(lambda xyz: xyz.astype(np.float64)), "same"),
    Fault("channels first", CLOUDS, cells(lambda xyz: xyz.transpose(2, 0, 1)), "refused", r"000\.tiff.*height, width"),
    Fault("hidden query", CHAIRS, hide_a_copy("images/*/*.png"), "same"),
    Fault("blank reference view", CHAIRS, recode(VIEW, lambda view: 0 * view + 255), "refused", "shows nothing"),
    Fault("tiny reference view", CHAIRS, recode(VIEW, lambda view: view[:8, :8]), "refused", r"2_3\..*small"),
    Fault("reference views of two shapes", CHAIRS, second_shape, "refused", "one shape.*2, 7"),
    Fault("NaN positions on the surface", CHAIRS, positions(np.nan), "refused", r"2_3\..*not finite"),
    Fault("endless positions on the surface", CHAIRS, positions(1e30), "refused", r"2_3\..*too large"),
    Fault("no position on the surface", CHAIRS, positions(-1), "refused", r"2_3\..*no position"),
    Fault("missing masks of a defect", CHAIRS, remove_all("annotations/2/mask*"), "reported", "1 of 3.*render_2_1"),
    Fault("masks with suffixes in upper case", CHAIRS, rename_all("annotations/2/mask*", ".PNG"), "same"),
    Fault("anomaly in upper case", CHAIRS, upper_case_anomaly, "same"),
    Fault("box outside of the image", CHAIRS, box(600, 600, 10, 10), "refused", "2d_bbox"),
    Fault("box partly outside", CHAIRS, box(450, 450, 100, 100), "reported", "2d_bbox"),
    Fault("box in fractions", CHAIRS, box(0.4, 0.5, 0.1, 0.1), "refused", "pixels"),
    Fault("box with NaN", CHAIRS, box(float("nan"), 0, 9, 9), "refused", "2d_bbox"),
    Fault("endless box", CHAIRS, box(0, 0, float("inf"), 9), "refused", "2d_bbox"),
    Fault("box beyond floats", CHAIRS, box(0, 0, 10**400, 9), "refused", "2d_bbox"),
    Fault("box of text", CHAIRS, box("1", "2", "30", "40"), "refused", "2d_bbox"),
]  # fmt: skip


@pytest.fixture(scope="session")
def intact(tmp_path_factory) -> dict[str, Path]:
    """Folders of small data sets, by the name of the datamodule."""
    folder = tmp_path_factory.mktemp("intact")
    write_mad(folder / "posed", "car", 0, 40, views=12, test_good=2, test_per_defect=1, progress=False)
    shutil.rmtree(folder / "posed" / "_hidden")  # true poses name the folders of their images
    write_chairs(folder / "chairs", 3, 2, size=64, views=5, progress=False)
    write_clouds(folder / "clouds", ["ring"], size=64, train=1, test_good=1, test_per_defect=1, progress=False)
    roots = {"BrokenChairs": "chairs", "MVTec3DRendered": "clouds"}
    return {name: folder / roots.get(name, "posed") for name in DATAMODULES}


def items(datamodule: Any) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """Return the tensors of all items, by the split and the position in the order of their labels and brightness."""
    datamodule.prepare_data()
    datamodule.setup()
    tensors = {}
    for split in ("train_data", "test_data"):
        dataset = getattr(datamodule, split, None)
        torch.manual_seed(0)  # the training items of chairs are random pairs of a query and a shape
        loaded = [vars(dataset[index]) for index in range(0 if dataset is None else len(dataset))]
        loaded.sort(key=lambda fields: (float(fields["gt_label"]), round(float(fields["image"].mean()), 4)))
        for index, fields in enumerate(loaded):
            tensors[split, index] = {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}
    return tensors


@pytest.mark.parametrize("name", DATAMODULES)
def test_an_intact_data_set_is_read_in_silence(intact, name, caplog):
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        assert items(DATAMODULES[name](intact[name]))
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "fault"),
    [(name, fault) for fault in FAULTS for name in fault.datamodules],
    ids=lambda value: value.name if isinstance(value, Fault) else value,
)
def test_fault(intact, tmp_path, caplog, name, fault):
    root = tmp_path / intact[name].name
    shutil.copytree(intact[name], root)
    fault.damage(root)
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        if fault.outcome == "refused":
            with pytest.raises((ValueError, OSError)) as refusal:
                items(DATAMODULES[name](root))
            assert re.search(fault.pattern, str(refusal.value))
            assert len(str(refusal.value).splitlines()) == 1
            return
        actual = items(DATAMODULES[name](root))
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("anomalib_pose")]
    if fault.outcome == "reported":
        assert any(re.search(fault.pattern, warning) for warning in warnings), warnings
        return
    assert warnings == []
    expected = items(DATAMODULES[name](intact[name]))
    assert actual.keys() == expected.keys()
    for key, tensors in expected.items():
        assert actual[key].keys() == tensors.keys()
        for field, tensor in tensors.items():
            torch.testing.assert_close(actual[key][field], tensor, rtol=0, atol=1e-4, msg=f"{key}: {field}")


def test_the_writers_of_this_table_make_the_faults(intact, tmp_path):
    root = tmp_path / "posed"
    shutil.copytree(intact["MAD"], root)
    recode(MASKS, lambda mask: np.dstack([0 * mask] * 3 + [mask]))(root)
    mask = Image.open(next(root.glob(MASKS)))
    assert mask.mode == "RGBA"
    assert not np.asarray(mask.convert("RGB")).any()
