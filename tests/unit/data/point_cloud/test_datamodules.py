# SPDX-License-Identifier: Apache-2.0
"""Datamodules of rendered clouds: content of items, training and test categories, caches, and errors."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from anomalib.data import AnomalibDataModule
from anomalib.utils.path import generate_output_filename
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torchvision.transforms.v2 import Compose, Resize

from anomalib_pose.data import CloudBatch, CloudItem, EyecandiesRendered, MVTec3DRendered, Real3DADRendered
from anomalib_pose.data.point_cloud.preprocessing import isolate_object
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings, render_organized, render_unorganized
from anomalib_pose.data.point_cloud.rendered_layout import write_original, write_rendered

SIZE, RAW = 24, 60


def recording(seed):
    """Cloud of a depth camera at 1 mm a cell, photograph and mask of a box with a red spot on a table."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:RAW, :RAW] * 0.001
    top, left = rng.integers(15, 25, 2)
    z = np.full((RAW, RAW), 0.5) + rng.normal(0, 1e-4, (RAW, RAW))
    z[top : top + 22, left : left + 24] -= 0.02
    mask = np.zeros((RAW, RAW), np.uint8)
    mask[top + 4 : top + 12, left + 5 : left + 12] = 255
    rgb = np.full((RAW, RAW, 3), 60, np.uint8)
    rgb[top : top + 22, left : left + 24] = [200, 180, 90]
    return np.stack([x, y, z], -1).astype(np.float32), rgb, mask


def write_recording(folder, name, seed):
    xyz, rgb, mask = recording(seed)
    good = folder.name == "good"
    rgb[(mask > 0) & (not good)] = [255, 0, 0]
    for part, array in (("xyz", xyz), ("rgb", rgb), ("gt", mask * (not good))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        path = folder / part / name
        if part == "xyz":
            tifffile.imwrite(path.with_suffix(".tiff"), array)
        else:
            Image.fromarray(array).save(path.with_suffix(".png"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for number, category in enumerate(("bagel", "carrot", "tire")):
        for index in range(2):
            write_recording(root / category / "test" / "good", f"00{index}", 10 * number + index)
            write_recording(root / category / "test" / "hole", f"00{index}", 10 * number + 5 + index)
        write_recording(root / category / "train" / "good", "000", 100 + number)
    (root / "notes").mkdir()
    return root


@pytest.fixture
def root(written, tmp_path):
    return shutil.copytree(written, tmp_path / "raw")


def mvtec(root, category="bagel", train_category="carrot", **arguments):
    datamodule = MVTec3DRendered(root, category, train_category, size=SIZE, num_workers=0, **arguments)
    datamodule.setup()
    return datamodule


def by_name(data):
    return {"/".join(item.image_path.split("/")[-5:]): item for item in data}


def test_items_hold_the_object_and_its_views(written):
    datamodule = mvtec(written)
    assert isinstance(datamodule, AnomalibDataModule)
    items = by_name(datamodule.test_data)
    assert sorted(items) == sorted(f"bagel/test/{kind}/rgb/00{i}.png" for kind in ("good", "hole") for i in (0, 1))
    item = items["bagel/test/hole/rgb/001.png"]
    assert type(item) is CloudItem
    xyz, rgb, mask = recording(6)
    rgb[mask > 0] = [255, 0, 0]
    photograph = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    isolated = isolate_object(torch.from_numpy(xyz), photograph, torch.from_numpy(mask / 255).float())
    expected = render_organized(isolated[0], RenderSettings(size=SIZE), isolated[2], isolated[1])
    for name in ("points", "valid", "view_masks", "pixels", "visible"):
        assert torch.equal(getattr(item, name), getattr(expected, name)), name
    assert torch.equal(item.views, expected.views / 255)
    assert torch.equal(item.image.as_subclass(torch.Tensor), expected.rgb / 255)
    assert torch.equal(item.gt_mask.as_subclass(torch.Tensor), expected.gt_mask)
    assert (item.gt_label, item.category, bool(item.has_rgb), bool(item.organized)) == (1, "bagel", True, True)
    red = (item.image[0] > 0.8) & (item.image[1] < 0.3)
    assert (red & item.gt_mask).sum() > 0.6 * item.gt_mask.sum()
    good = items["bagel/test/good/rgb/000.png"]
    assert (good.gt_label, int(good.gt_mask.sum()), int(good.view_masks.sum())) == (0, 0, 0)
    assert int(item.view_masks.sum()) > 0


def test_batches_stack_items_and_are_split_again(written):
    batch = next(iter(mvtec(written, train_batch_size=3).train_dataloader()))
    assert type(batch) is CloudBatch
    assert batch.views.shape == (3, 9, 3, SIZE, SIZE)
    assert batch.pixels.shape == (3, 9, SIZE * SIZE, 2)
    assert batch.visible.shape == (3, 9, SIZE * SIZE)
    assert batch.points.shape == (3, SIZE, SIZE, 3)
    assert batch.gt_mask.shape == batch.valid.shape == (3, SIZE, SIZE)
    assert batch.category == ["carrot"] * 3
    item = batch.items[1]
    assert type(item) is CloudItem
    assert torch.equal(item.pixels, batch.pixels[1])
    np.testing.assert_array_equal(batch.to_numpy().visible[1], item.to_numpy().visible)


def test_views_of_other_shapes_are_not_stacked(written):
    items = [mvtec(written, views=views).test_data[0] for views in (5, 9)]
    with pytest.raises(ValueError, match="one shape"):
        CloudBatch.collate(items)


def test_training_category_is_never_tested(written):
    datamodule = mvtec(written, "rest", "carrot")
    assert {item.category for item in datamodule.test_data} == {"bagel", "tire"}
    assert {item.category for item in datamodule.train_data} == {"carrot"}
    assert {int(item.gt_label) for item in datamodule.train_data} == {0, 1}
    with pytest.raises(ValueError, match="uses the labels"):
        MVTec3DRendered(written, "carrot", "carrot")


@pytest.mark.parametrize("category", ["bagel", "rest"])
def test_pictures_of_results_do_not_overwrite_each_other(written, tmp_path, monkeypatch, category):
    for root in (written, "."):
        monkeypatch.chdir(written)
        datamodule = mvtec(root, category)
        names = {
            generate_output_filename(item.image_path, tmp_path, datamodule.name, datamodule.category, mkdir=False)
            for item in datamodule.test_data
        }
        assert len(names) == len(datamodule.test_data)


def test_the_training_category_is_recognized_behind_a_link(root, tmp_path):
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ValueError, match="uses the labels"):
        MVTec3DRendered(root, "carrot", "carrot", tmp_path / "link")
    datamodule = mvtec(root, "rest", "carrot", train_root=tmp_path / "link")
    assert {item.category for item in datamodule.test_data} == {"bagel", "tire"}


def test_training_on_another_data_set(root, tmp_path):
    other_root = shutil.copytree(root, tmp_path / "other")
    datamodule = mvtec(root, "rest", "carrot", train_root=other_root)
    assert {item.category for item in datamodule.test_data} == {"bagel", "carrot", "tire"}
    assert all(item.image_path.startswith(str(other_root)) for item in datamodule.train_data)


def test_testing_alone_needs_no_training_category(written):
    datamodule = mvtec(written, "rest", None)
    assert len(datamodule.test_data) == 12
    assert len(datamodule.val_data) == 12
    with pytest.raises(ValueError, match="nothing to train on"):
        datamodule.train_dataloader()
    with pytest.raises(ValueError, match="needs a train_category"):
        MVTec3DRendered(written, "bagel", None, val_split_mode="from_train")


def test_a_test_alone_does_not_ask_for_the_default_training_category(written):
    datamodule = MVTec3DRendered(written, "bagel", "cookie", num_workers=0)
    datamodule.trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING))
    datamodule.prepare_data()
    datamodule.setup(TrainerFn.TESTING)
    assert {item.category for item in datamodule.test_data} == {"bagel"}
    with pytest.raises(
        ValueError, match=r"no category 'cookie' in .*; there are: bagel, carrot.* Change train_category\."
    ):
        datamodule.train_dataloader()
    datamodule.trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(ValueError, match="no category 'cookie'"):
        datamodule.prepare_data()


def test_validation_from_the_training_category(written):
    datamodule = mvtec(written, val_split_mode="from_train", val_split_ratio=0.5, seed=1)
    assert {item.category for item in datamodule.val_data} == {"carrot"}
    assert len(datamodule.val_data) + len(datamodule.train_data) == 4
    assert len(datamodule.test_data) == 4


def test_cached_clouds_equal_rendered_ones_and_are_not_rendered_again(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    plain, first = mvtec(root).test_data[0], mvtec(root, cache_dir=cache).test_data[0]
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("anomalib_pose.data.point_cloud.sources.render_organized", None)
    cached = mvtec(root, cache_dir=cache).test_data[0]
    for name in ("image", "gt_mask", "points", "valid", "views", "view_masks", "pixels", "visible", "organized"):
        assert torch.equal(getattr(plain, name), getattr(first, name)), name
        assert torch.equal(getattr(plain, name), getattr(cached, name)), name
    monkeypatch.undo()
    mvtec(root, cache_dir=cache, views=5).test_data[0]
    os.utime(root / "bagel/test/good/xyz/000.tiff", ns=(1, 1))
    mvtec(root, cache_dir=cache).test_data[0]
    assert len(list(cache.iterdir())) == 3
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="remove it"):
        mvtec(root, cache_dir=cache).test_data[0]


def test_a_cache_of_version_0_1_is_read(root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    item = mvtec(root, cache_dir=cache).test_data[0]
    (path,) = cache.iterdir()
    with np.load(path, allow_pickle=False) as arrays:
        renamed = {name.replace("organized", "organised"): arrays[name] for name in arrays.files}
    assert {"organised", "organised.shape"} <= renamed.keys()
    np.savez_compressed(path, **renamed)
    monkeypatch.setattr("anomalib_pose.data.point_cloud.sources.render_organized", None)
    cached = mvtec(root, cache_dir=cache).test_data[0]
    for name in ("points", "valid", "views", "view_masks", "pixels", "visible", "organized"):
        assert torch.equal(getattr(cached, name), getattr(item, name)), name


def to_rendered(raw, out, size=SIZE, plain=False):
    """Render the raw recordings to one of the two published layouts."""
    for kind in (path.parent for path in raw.glob("*/test/*/xyz")):
        name = "good" if kind.name == "good" else "anomaly"
        folder = out / kind.relative_to(raw).parent / name
        for path in sorted((kind / "xyz").iterdir()):
            mask = torch.from_numpy(np.asarray(Image.open(kind / "gt" / f"{path.stem}.png")) / 255).float()
            rgb = torch.from_numpy(np.array(Image.open(kind / "rgb" / f"{path.stem}.png"))).permute(2, 0, 1) / 255
            xyz, rgb, mask = isolate_object(torch.from_numpy(tifffile.imread(path)), rgb, mask)
            if plain:
                valid = xyz[..., 2] != 0
                cloud = render_unorganized(xyz[valid], mask[valid] > 0.5, RenderSettings(size=size))
            else:
                cloud = render_organized(xyz, RenderSettings(size=size), mask, rgb)
                write_original(folder, path.stem, xyz, rgb, mask)
            write_rendered(folder, path.stem, cloud)
    return out


def test_rendered_layout_gives_the_same_items_as_raw_recordings(written, tmp_path):
    rendered = to_rendered(written, tmp_path / "rendered")
    datamodule = EyecandiesRendered(rendered, "bagel", "carrot", size=SIZE, num_workers=0)
    datamodule.setup()
    raw = by_name(mvtec(written).test_data)
    for name, item in by_name(datamodule.test_data).items():
        expected = raw[name.replace("anomaly", "hole")]
        for field in ("image", "gt_mask", "points", "valid", "views", "view_masks", "pixels", "visible", "gt_label"):
            torch.testing.assert_close(getattr(item, field), getattr(expected, field), msg=f"{name} {field}")
    # a data set may train on another one's raw recordings
    crossed = EyecandiesRendered(rendered, "rest", "carrot", written, size=SIZE, num_workers=0)
    crossed.setup()
    assert len(crossed.train_data) == 4
    assert {item.category for item in crossed.test_data} == {"bagel", "carrot", "tire"}


def test_the_image_of_an_unorganized_cloud_is_its_front_view(written, tmp_path):
    rendered = to_rendered(written, tmp_path / "rendered", plain=True)
    datamodule = Real3DADRendered(rendered, "bagel", "carrot", size=SIZE, num_workers=0)
    datamodule.setup()
    item = datamodule.test_data[0]
    assert not item.has_rgb
    assert not item.organized
    assert item.valid.all()
    assert torch.equal(item.image.as_subclass(torch.Tensor), item.views[2])
    assert item.image_path.endswith("view_2.png")
    assert {int(item.gt_label) for item in datamodule.test_data} == {0, 1}


def test_a_size_that_is_not_rendered_is_refused(written, tmp_path):
    rendered = to_rendered(written, tmp_path / "rendered", size=20)
    datamodule = EyecandiesRendered(rendered, "bagel", None, size=SIZE, num_workers=0)
    datamodule.setup()
    with pytest.raises(ValueError, match="is 20 x 20: expected 24 x 24"):
        datamodule.test_data[0]


def test_a_models_resizing_may_not_change_the_size(written):
    for size, fits in ((SIZE, True), (SIZE + 1, False)):
        datamodule = MVTec3DRendered(written, "bagel", None, size=SIZE, num_workers=0)
        datamodule.trainer = SimpleNamespace(
            model=SimpleNamespace(pre_processor=SimpleNamespace(transform=Compose([Resize((size, size))]))),
            state=SimpleNamespace(fn=TrainerFn.FITTING),
        )
        datamodule.setup()
        if fits:
            assert datamodule.test_data[0].image.shape == (3, SIZE, SIZE)
        else:
            with pytest.raises(ValueError, match="set the datamodule's size"):
                datamodule.test_data[0]


def save(path, array):
    if path.suffix == ".tiff":
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("rgb/000.png", np.zeros((RAW, RAW + 1, 3), np.uint8), "should have one size"),
        ("gt/000.png", np.zeros((RAW + 1, RAW), np.uint8), "should have one size"),
        ("xyz/000.tiff", np.zeros((RAW, RAW, 3), np.float32), "0 points"),
        ("xyz/000.tiff", np.full((RAW, RAW, 3), np.nan, np.float32), "0 points"),
        ("xyz/000.tiff", np.ones((RAW, RAW, 3), np.uint8), "uint8"),
        (
            "xyz/000.tiff",
            recording(0)[0] * np.float32([1, 1, 0]) + np.float32([0, 0, 1]),
            r"000\.tiff: Nothing is left",
        ),
        ("xyz/000.tiff", recording(0)[0] * np.float32(1000), r"000\.tiff.*meters"),
    ],
)
def test_bad_recordings_are_named(root, name, array, words):
    save(root / "bagel/test/hole" / name, array)
    with pytest.raises(ValueError, match=words):
        list(mvtec(root).test_data)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: (r / "bagel/test/hole/rgb/000.png").unlink(), "no photograph"),
        (lambda r: (r / "bagel/test/hole/gt/000.png").unlink(), "no mask"),
        (lambda r: shutil.rmtree(r / "bagel/test"), "There is no folder"),
        (lambda r: [shutil.rmtree(kind / "xyz") for kind in (r / "bagel/test").iterdir()], "There are no clouds"),
        (lambda r: shutil.rmtree(r), "download mvtec_3d"),
    ],
)
def test_missing_files_are_named(root, spoil, words):
    spoil(root)
    with pytest.raises(FileNotFoundError, match=words):
        mvtec(root)


def test_unknown_categories_views_and_splits_are_refused(written):
    with pytest.raises(ValueError, match="there are: bagel, carrot, tire"):
        mvtec(written, "potato")
    with pytest.raises(ValueError, match="there are: bagel, carrot, tire"):
        mvtec(written, "bagel", "potato")
    with pytest.raises(ValueError, match="views should be one of"):
        MVTec3DRendered(written, views=4)
    with pytest.raises(ValueError, match="val_split_mode"):
        MVTec3DRendered(written, val_split_mode="synthetic")


def test_a_real_recording(shared, tmp_path):
    source = shared / "data" / "mvtec3d_subset" / "cable_gland"
    if not source.is_dir():
        pytest.skip(f"there is no {source}")
    (tmp_path / "cable_gland").symlink_to(source)
    datamodule = MVTec3DRendered(tmp_path, "cable_gland", None, num_workers=0)
    datamodule.setup()
    items = by_name(datamodule.test_data.subsample([0, 20]))
    assert len(datamodule.test_data) == 25
    for item in items.values():
        assert 0.1 < item.valid.float().mean() < 0.4
        cover = (item.views < 1).all(1).float().mean((1, 2))
        assert (cover > 0.08).all()
        assert bool(item.gt_mask.any()) == bool(item.view_masks.any()) == bool(item.gt_label)
        for view in range(9):
            visible_pixels = item.pixels[view][item.visible[view]]
            covered_pixels = (item.views[view] < 1).all(0).nonzero()
            assert (visible_pixels.amin(0) - covered_pixels.amin(0)).abs().max() <= 3  # half of a square
            assert (visible_pixels.amax(0) - covered_pixels.amax(0)).abs().max() <= 3
