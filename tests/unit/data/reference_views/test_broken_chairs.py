# SPDX-License-Identifier: Apache-2.0
"""BrokenChairs in both layouts: evaluation is deterministic, and boxes follow the random crops of training."""

import itertools
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data import BrokenChairs, ViewBatch
from anomalib_pose.data.reference_views.broken_chairs_files import ANOMALY_TYPES, find_queries, split_queries
from anomalib_pose.data.reference_views.dataset import PAIR_POINTS, ReferenceViewDataset
from anomalib_pose.data.reference_views.files import find_reference_views
from anomalib_pose.data.reference_views.shape_sampler import ShapeSampler

VIEWS = 12


@pytest.fixture
def root(chairs: Path) -> Path:
    return chairs


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The data set to spoil."""
    return Path(shutil.copytree(root, tmp_path / "chairs"))


def datamodule(root: Path, **options) -> BrokenChairs:
    module = BrokenChairs(root, **{"train_views": 3, "eval_views": 4, "num_workers": 0, **options})
    module.setup()
    return module


def first_release(root: Path, out: Path) -> Path:
    """The same files in the other layout; its split names no training shapes."""
    for query in find_queries(root):
        good = query.kind == "good"
        kind = "" if good else str(ANOMALY_TYPES.index(query.kind) + 1)
        folder = out / ("normals" if good else "anomalies") / (query.shape_id if good else f"A{query.shape_id}_{kind}")
        (folder / "renders").mkdir(parents=True, exist_ok=True)
        shutil.copy(query.image_path, folder / "renders")
        if not good:
            (folder / "annotation").mkdir(exist_ok=True)
            for path in (query.annotation_path, *query.mask_paths):
                shutil.copy(path, folder / "annotation")
    for folder in (root / "shapes").iterdir():
        shutil.copytree(folder / "mv_images", out / "normals" / folder.name.removeprefix("shape_") / "rendered_mesh")
    split = json.loads((root / "split.json").read_text())
    (out / "split.json").write_text(json.dumps({"test": [int(s) for s in split["test"]], "val": split["val"]}))
    return out


def test_evaluation_uses_the_central_crop_and_views_spread_over_all(root: Path) -> None:
    data = datamodule(root).test_data
    files = find_reference_views(root / "shapes" / "shape_2" / "mv_images")
    for index, query in enumerate(
        sorted((q for q in find_queries(root) if q.shape_id == "2"), key=lambda q: str(q.image_path))
    ):
        item = data[index]
        assert item.image_path == str(query.image_path)
        with Image.open(query.image_path) as image:
            image = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
            expected = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR))
        assert np.abs(item.image.permute(1, 2, 0).numpy() * 255 - expected).max() < 2
        assert item.shape_id == "2"
        assert int(item.gt_label) == (query.kind != "good")
        assert item.pair_points is None
        for view, file in enumerate(files[:: VIEWS // 4]):
            pixels = np.asarray(Image.open(file.image_path)) / 255
            np.testing.assert_allclose(item.reference_images[view].permute(1, 2, 0), pixels, atol=1e-6)
            table = np.load(file.correspondences_path, allow_pickle=True).item()
            np.testing.assert_allclose(item.reference_xyz[view], table["xyz"], atol=1e-6)
        again = data[index]
        for name in ("image", "reference_images", "reference_xyz", "box"):
            assert torch.equal(getattr(item, name), getattr(again, name))


def test_boxes_enclose_the_masks_in_evaluation(root: Path) -> None:
    for item in datamodule(root).test_data:
        check_box(item, margin=2.5)


def check_box(item, margin: float) -> None:
    """Check that a good query has no box, and that the box of a defect encloses its mask within ``margin`` pixels."""
    if not int(item.gt_label):
        assert not item.box.any()
        assert not item.gt_mask.any()
        return
    x, y, width, height = (item.box * 256).tolist()
    rows, columns = (np.flatnonzero(item.gt_mask.numpy().any(axis)) for axis in (1, 0))
    mask_box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert mask_box == pytest.approx([x - width / 2, y - height / 2, x + width / 2, y + height / 2], abs=margin)


def test_boxes_follow_random_crops_and_mirroring(root: Path) -> None:
    data = datamodule(root).train_data
    torch.manual_seed(0)
    boxes = []
    for index in range(len(data)):
        for _ in range(6):
            item = data[index]
            check_box(item, margin=2.5)
            if int(item.gt_label):
                boxes.append(item.box)
    assert torch.stack(boxes[:6]).std(0)[:2].min() > 0.005


def test_training_repeats_with_the_seed_of_torch(root: Path) -> None:
    data = datamodule(root).train_data

    def drawn(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        item = data[1]
        return [item.image, item.reference_images, item.box, item.pair_images, item.pair_points]

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_training_without_augmentation_still_crops(root: Path) -> None:
    """With all of it off, each item is one of the 33 x 33 parts of the query."""
    data = datamodule(root, flip=False, light=False).train_data
    torch.manual_seed(0)
    pixels = Image.open(data.samples.iloc[0].image_path).resize((256, 256), Image.Resampling.BILINEAR)
    for _ in range(4):
        state = torch.get_rng_state()
        item = data[0]
        torch.set_rng_state(state)
        assert not int(item.gt_label)  # a box would have it draw again
        top, left = torch.randint(0, 33, (2,)).tolist()
        part = pixels.crop((left, top, left + 224, top + 224)).resize((256, 256), Image.Resampling.BILINEAR)
        assert np.abs(item.image.permute(1, 2, 0).numpy() * 255 - np.asarray(part)).max() < 2


def test_pairs_are_the_same_points_in_two_views(root: Path) -> None:
    data = datamodule(root).train_data
    files = find_reference_views(root / "shapes" / "shape_0" / "mv_images")
    images = torch.stack([file.image() for file in files])
    tables = [np.load(file.correspondences_path, allow_pickle=True).item() for file in files]
    torch.manual_seed(0)
    pairs = set()
    for _ in range(8):
        item = data[0]
        first, second = (int((images == image).flatten(1).all(1).nonzero()[0]) for image in item.pair_images)
        assert first != second
        pairs.add((first, second))
        a, b = tables[first], tables[second]
        both = a["is_visible"] & b["is_visible"]
        for table in (a, b):
            both &= ((table["pxy"] >= 0) & (table["pxy"] < 256)).all(1)
        candidates = np.stack([a["pxy"], b["pxy"]], 1)[both]
        points = item.pair_points.numpy()
        assert points.shape == (PAIR_POINTS, 2, 2)
        np.testing.assert_array_equal(points[0], candidates[0])
        assert {tuple(point.ravel()) for point in points} <= {tuple(point.ravel()) for point in candidates}
        # farthest points: each is at least as far from those before as any candidate is from all of them
        gaps = np.linalg.norm(candidates[:, None, 0] - points[None, :, 0], axis=2).min(1)
        apart = np.linalg.norm(points[:, None, 0] - points[None, :, 0], axis=2)[np.triu_indices(PAIR_POINTS, 1)]
        assert apart.min() >= gaps.max() - 1e-9
    assert len(pairs) > 3


def test_shapes_with_too_few_common_points_are_named(copy: Path) -> None:
    for path in (copy / "shapes" / "shape_0" / "mv_images").glob("*_20.npy"):
        table = np.load(path, allow_pickle=True).item()
        table["is_visible"][20:] = False
        np.save(path, np.array(table, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"shape_0.*32 common points"):
        datamodule(copy).train_data[0]


def test_a_duplicate_view_counts_once(copy: Path) -> None:
    folder = copy / "shapes" / "shape_2" / "mv_images"
    for suffix in (".png", ".npy", ".json", "_depth.npy"):
        shutil.copy(folder / f"2_3.0_0_20{suffix}", folder / f"2_3.0_360_20{suffix}")
    item = datamodule(copy, eval_views=VIEWS).test_data[0]
    assert len({view.numpy().tobytes() for view in item.reference_images}) == VIEWS
    with pytest.raises(ValueError, match=f"has {VIEWS} different views, {VIEWS + 1} are asked for"):
        datamodule(copy, eval_views=VIEWS + 1).test_data[0]


def test_both_layouts_give_the_same_items(root: Path, tmp_path: Path) -> None:
    other_root = first_release(root, tmp_path / "first")
    for name in ("train", "val", "test"):
        queries, other_queries = (
            {query.image_path.name: query for query in split_queries(folder, find_queries(folder))[name]}
            for folder in (root, other_root)
        )
        assert queries.keys() == other_queries.keys()
        assert [query.kind for query in queries.values()] == [other_queries[key].kind for key in queries]
    release, first = datamodule(root), datamodule(other_root)
    items = {Path(item.image_path).name: item for item in release.test_data}
    for item in first.test_data:
        expected = items[Path(item.image_path).name]
        for name in ("image", "reference_images", "reference_xyz", "box", "gt_mask"):
            assert torch.equal(getattr(item, name), getattr(expected, name))


def test_loaders_give_batches_with_the_networks_inputs(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "anomalib_pose"):
        module = datamodule(root, train_batch_size=2, eval_batch_size=4)
    for name in ("train", "val", "test"):
        line = next(record.message for record in caplog.records if f", {name}:" in record.message)
        assert "4 images (2 good, 2 anomalous: " in line
        assert line.endswith("of 1 shapes.")
    batch = next(iter(module.train_dataloader()))
    assert type(batch) is ViewBatch
    assert batch.reference_images.shape == (2, 3, 3, 256, 256)
    assert batch.pair_images.shape == (2, 2, 3, 256, 256)
    batch = next(iter(module.test_dataloader()))
    assert batch.reference_xyz.shape == (4, 4, 32, 32, 3)
    assert batch.gt_label.sum() == 2
    assert batch.shape_id == ["2"] * 4
    assert {Path(path).parent.name for path in next(iter(module.val_dataloader())).image_path} == {"1"}
    assert batch.image.min() >= 0
    assert batch.image.max() <= 1


def test_queries_of_a_shape_follow_each_other() -> None:
    """Every query once, in runs of one shape as long as asked for, in another order each time."""
    shapes = [f"chair{i % 5}" for i in range(31)]
    sampler = ShapeSampler(shapes, 3)
    torch.manual_seed(0)
    orders = [list(sampler) for _ in range(3)]
    assert len(sampler) == 31
    assert all(sorted(order) == list(range(31)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    for order in orders:
        runs = [len(list(run)) for _, run in itertools.groupby(shapes[i] for i in order)]
        assert sum(length // 3 for length in runs) >= 10
    torch.manual_seed(0)
    assert list(sampler) == orders[0]
    with pytest.raises(ValueError, match="should be 1 or more, got 0"):
        ShapeSampler(shapes, 0)


def test_workers_have_their_own_seeds(root: Path) -> None:
    module = datamodule(root, train_batch_size=1, num_workers=2)

    def epoch(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [batch.pair_points for batch in module.train_dataloader()]

    first, again = epoch(0), epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({points.numpy().tobytes() for points in first}) == len(first)


def test_validation_queries_come_from_the_chosen_split(
    root: Path, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = {
        mode: set(datamodule(root, val_split_mode=mode).val_data.samples.image_path)
        for mode in ("from_dir", "same_as_test")
    }
    assert {Path(path).parent.name for path in paths["from_dir"]} == {"1"}
    assert {Path(path).parent.name for path in paths["same_as_test"]} == {"2"}
    part = datamodule(root, val_split_mode="from_test", seed=0)
    assert (len(part.val_data), len(part.test_data)) == (2, 2)
    (copy / "split.json").write_text(json.dumps({"train": ["0", "1"], "test": ["2"]}))
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        module = datamodule(copy)
    assert set(module.val_data.samples.image_path) == set(module.test_data.samples.image_path)
    assert "thresholds are chosen on the test set" in caplog.text
    for mode in ("none", "synthetic", "from_train"):
        with pytest.raises(ValueError, match="val_split_mode should be one of"):
            BrokenChairs(root, val_split_mode=mode)
    for name in ("train_views", "eval_views", "queries_per_shape"):
        with pytest.raises(ValueError, match="train_views, eval_views and queries_per_shape should be 1 or more"):
            BrokenChairs(root, **{name: 0})


def test_without_masks_there_are_labels_and_boxes(copy: Path) -> None:
    for path in (copy / "annotations").rglob("mask_*.png"):
        path.unlink()
    item = next(item for item in datamodule(copy).test_data if int(item.gt_label))
    assert item.gt_mask is None
    assert item.box.min() > 0


def test_images_of_shapes_that_no_split_names_are_counted(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copy / "split.json").write_text(json.dumps({"train": ["0"], "val": [], "test": ["2"]}))
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        assert len(datamodule(copy).train_data) == 4
    assert "4 images are left out" in caplog.text


def test_missing_or_broken_files_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder.*anomalib-pose sample chairs"):
        datamodule(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="should have the folders images, annotations and shapes"):
        datamodule(tmp_path / "empty")
    (tmp_path / "empty" / "images").mkdir()
    with pytest.raises(FileNotFoundError, match="There are no query images"):
        datamodule(tmp_path / "empty")
    note = next((copy / "annotations" / "2").glob("info_*.json"))
    good = note.read_text()
    for stored, message in (
        ("[1, 2, 3]", "2d_bbox.*found"),
        ("[600, 10, 20, 20]", "without area inside"),
        ("null", "2d_bbox"),
    ):
        note.write_text('{"2d_bbox": ' + stored + "}")
        with pytest.raises(ValueError, match=message) as caught:
            list(datamodule(copy).test_data)
        assert note.name in str(caught.value)
    note.unlink()
    with pytest.raises(FileNotFoundError, match="1 anomalous images have no annotation, the first is"):
        datamodule(copy)
    note.write_text(good)
    image = next((copy / "images" / "2").glob("*.png"))
    Image.new("RGB", (64, 32)).save(image)
    with pytest.raises(ValueError, match="is 64 x 32"):
        list(datamodule(copy).test_data)
    shutil.rmtree(copy / "shapes" / "shape_1")
    with pytest.raises(FileNotFoundError, match=r"1 shapes have no reference views.*shape_1"):
        datamodule(copy)


def test_a_shape_belongs_to_one_split(copy: Path) -> None:
    split = copy / "split.json"
    split.write_text(json.dumps({"train": ["0", 2], "val": ["1"], "test": ["2"]}))
    with pytest.raises(ValueError, match="shape '2' in train and in test"):
        datamodule(copy)
    split.write_text(json.dumps({"train": "0", "test": ["2"]}))
    with pytest.raises(ValueError, match="should have lists of shape ids"):
        datamodule(copy)
    split.unlink()
    with pytest.raises(FileNotFoundError, match=r"split.json"):
        datamodule(copy)


def test_names_without_a_shape_are_refused(copy: Path) -> None:
    image = next((copy / "images" / "2").glob("*.png"))
    image.rename(image.with_name("photo.png"))
    with pytest.raises(ValueError, match=r"named render_<shape>_.*photo.png"):
        find_queries(copy)


def test_a_model_may_ask_for_another_size(root: Path) -> None:
    from torchvision.transforms.v2 import Resize

    data = datamodule(root).test_data
    plain = data[1]
    assert isinstance(data, ReferenceViewDataset)
    data.augmentations = Resize((64, 64), antialias=True)
    item = data[1]
    assert item.image.shape == (3, 64, 64)
    assert item.gt_mask.shape == (64, 64)
    assert torch.equal(item.box, plain.box)
