# SPDX-License-Identifier: Apache-2.0
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import AnomalibDataModule, get_datamodule
from PIL import Image
from torchvision.transforms.v2 import Compose, Resize

import anomalib_pose
from anomalib_pose.data import MAD, PoseBatch
from anomalib_pose.geometry import Camera, mad_lattice

SIZE = 16
ANGLE = 0.9
POSES = mad_lattice(3.0).double()[::10]
TO_OPENGL = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
POINT = torch.tensor([[0.2, -0.3, 0.25]], dtype=torch.float64)


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def _spot(pose, size=SIZE):
    """White image with a dark round spot where the camera sees POINT."""
    uv, _ = Camera.from_fov(pose, ANGLE, size, size).project(POINT)
    x, y = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    spot = np.exp(-((x - float(uv[0, 0])) ** 2 + (y - float(uv[0, 1])) ** 2) / (2 * (size / 10) ** 2))
    return np.repeat(255 * (1 - spot)[..., None], 3, -1).round()


def _centroid(image):
    """Weighted mean of the pixels' coordinates, weighted with darkness."""
    dark = (1 - image[0]).double()
    dark = torch.where(dark > 0.1, dark, 0)
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in dark.shape), indexing="ij")
    return torch.stack([(x * dark).sum(), (y * dark).sum()]) / dark.sum()


@pytest.fixture
def root(tmp_path):
    """Six training views, two good and four spoiled test views, with masks."""
    folder = tmp_path / "MAD-Sim" / "01Gorilla"
    frames = []
    for index in range(6):
        _save(folder / f"train/good/{index}.png", _spot(POSES[index]))
        matrix = (POSES[index] @ TO_OPENGL).tolist()
        frames.append({"file_path": f"./train/good/{index}.png", "transform_matrix": matrix})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": frames}))
    for kind in ("good", "Burrs", "Stains"):
        for index in range(2):
            _save(folder / f"test/{kind}/{index}.png", _spot(POSES[index + 6]))
            mask = np.zeros((SIZE, SIZE))
            mask[2:6, 3 : 9 + index] = 255
            if kind != "good":
                _save(folder / f"ground_truth/{kind}/{index}_mask.png", mask)
    return tmp_path / "MAD-Sim"


def _mad(root, **arguments):
    datamodule = MAD(root, "01Gorilla", num_workers=0, **arguments)
    datamodule.setup()
    return datamodule


def _by_name(data):
    return {"/".join(item.image_path.split("/")[-2:]): item for item in data}


def test_all_loaders_give_pose_batches(root):
    datamodule = _mad(root, train_batch_size=4, eval_batch_size=3)
    assert isinstance(datamodule, AnomalibDataModule)
    assert (len(datamodule.train_data), len(datamodule.test_data), len(datamodule.val_data)) == (6, 6, 6)
    train = next(iter(datamodule.train_dataloader()))
    assert type(train) is PoseBatch
    assert train.image.shape == (4, 3, SIZE, SIZE)
    assert train.image.min() >= 0
    assert train.image.max() <= 1
    assert (train.camera_to_world.shape, train.camera_to_world.dtype) == ((4, 4, 4), torch.float64)
    assert (train.intrinsics.shape, train.intrinsics.dtype) == ((4, 3, 3), torch.float32)
    assert not train.gt_label.any()
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader(), datamodule.predict_dataloader()):
        batches = list(loader)
        assert all(type(batch) is PoseBatch and batch.camera_to_world is None for batch in batches)
        assert torch.equal(batches[0].intrinsics[0], train.intrinsics[0])
        assert sum(int(batch.gt_label.sum()) for batch in batches) == 4


def test_each_image_has_its_own_pose_in_any_order(root):
    items = _by_name(_mad(root).train_data)
    for index in range(6):
        assert torch.allclose(items[f"good/{index}.png"].camera_to_world.float(), POSES[index].float(), atol=1e-6)


def test_labels_and_masks_belong_to_their_images(root):
    items = _by_name(_mad(root).test_data)
    assert {name for name, item in items.items() if item.gt_label} == {
        f"{k}/{i}.png" for k in ("Burrs", "Stains") for i in (0, 1)
    }
    assert [int(items[f"Burrs/{i}.png"].gt_mask.sum()) for i in (0, 1)] == [24, 28]
    assert bool(items["Burrs/0.png"].gt_mask[2:6, 3:9].all())
    assert not items["good/0.png"].gt_mask.any()


@pytest.mark.parametrize("image_size", [None, 8, 11, 32])
def test_intrinsics_follow_the_size(root, image_size):
    size = image_size or SIZE
    for item in _mad(root, image_size=image_size).train_data:
        assert item.image.shape == (3, size, size)
        camera = Camera(item.camera_to_world.double(), item.intrinsics.double(), size, size)
        expected = camera.project(POINT)[0][0]
        assert torch.dist(_centroid(item.image), expected) < 0.02 * size


def test_masks_are_resized_with_their_images(root):
    item = _by_name(_mad(root, image_size=8).test_data)["Burrs/0.png"]
    assert item.gt_mask.shape == (8, 8)
    assert bool(item.gt_mask[1:3, 2:4].all())
    assert not item.gt_mask[4:].any()


def test_a_models_own_resizing_scales_the_intrinsics(root):
    datamodule = MAD(root, "01Gorilla", num_workers=0)
    transform = Compose([Resize((10, 20), antialias=True)])
    datamodule.trainer = SimpleNamespace(model=SimpleNamespace(pre_processor=SimpleNamespace(transform=transform)))
    datamodule.setup()
    item = _by_name(datamodule.train_data)["good/0.png"]
    focal = SIZE / 2 / math.tan(ANGLE / 2)
    assert item.image.shape == (3, 10, 20)
    assert torch.allclose(item.intrinsics, torch.tensor([[focal * 20 / 16, 0, 10], [0, focal * 10 / 16, 5], [0, 0, 1]]))
    assert _by_name(datamodule.test_data)["Burrs/0.png"].gt_mask.shape == (10, 20)


def _hidden_truth(root):
    entries = [
        {"file": f"test/{kind}/{index}.png", "transform_matrix": (POSES[index + 6] @ TO_OPENGL).tolist()}
        for kind in ("good", "Burrs", "Stains")
        for index in range(2)
    ]
    (root / "_hidden").mkdir()
    (root / "_hidden" / "01Gorilla.json").write_text(json.dumps({"radius": 3.0, "images": entries}))


def test_true_poses_beside_the_data_set_reach_the_queries(root):
    _hidden_truth(root)
    items = _by_name(_mad(root).test_data)
    for index in range(2):
        for kind in ("good", "Burrs"):
            assert torch.allclose(
                items[f"{kind}/{index}.png"].camera_to_world.float(), POSES[index + 6].float(), atol=1e-6
            )


def test_true_poses_inside_the_category_come_first(root, caplog):
    _hidden_truth(root)
    pose = (POSES[20] @ TO_OPENGL).tolist()
    frames = [{"file_path": "./test/good/1.png", "transform_matrix": pose}]
    (root / "01Gorilla" / "test_transforms.json").write_text(json.dumps({"frames": frames}))
    items = _by_name(_mad(root).test_data)
    assert torch.allclose(items["good/1.png"].camera_to_world.float(), POSES[20].float(), atol=1e-6)
    assert items["good/0.png"].camera_to_world is None
    assert "5 of 6 test images" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": 3}, "list 'images'"),
        ({"images": [{"transform_matrix": []}]}, "entry without 'file'"),
        ({"images": [{"file": "test/good/0.png"}]}, "test/good/0.png'.*no readable transform_matrix"),
    ],
)
def test_a_bad_file_of_true_poses_is_named(root, content, message):
    (root / "01Gorilla" / "test_transforms.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"test_transforms\.json.*{message}"):
        _mad(root)


def test_alpha_becomes_the_foreground(root):
    rgba = np.zeros((SIZE, SIZE, 4))
    rgba[4:12, 4:12] = [0, 0, 255, 255]
    for path in (root / "01Gorilla" / "train" / "good").iterdir():
        _save(path, rgba)
    batch = next(iter(_mad(root, image_size=8).train_dataloader()))
    truth = torch.zeros(8, 8)
    truth[2:6, 2:6] = 1
    assert batch.foreground.shape == (6, 8, 8)
    # Resizing blurs the edge by a pixel; image and foreground blur alike.
    assert torch.allclose(batch.foreground[0][3:5, 3:5], torch.ones(2, 2))
    assert ((batch.foreground[0] > 0.5) == (truth > 0.5)).all()
    assert torch.allclose(batch.image[0, 0], 1 - batch.foreground[0], atol=1e-6)
    assert torch.allclose(batch.image[0, 2], torch.ones(8, 8), atol=1e-6)


def test_validation_from_the_test_set_is_repeatable_and_does_not_overlap(root):
    names = []
    for _ in range(2):
        datamodule = _mad(root, val_split_mode="from_test", seed=3)
        test, val = set(_by_name(datamodule.test_data)), set(_by_name(datamodule.val_data))
        assert not test & val
        assert len(test | val) == 6
        names.append(val)
    assert names[0] == names[1]


def test_validation_from_the_training_set_keeps_poses(root):
    datamodule = _mad(root, val_split_mode="from_train", val_split_ratio=0.5, seed=0)
    items = _by_name(datamodule.val_data)
    assert (len(datamodule.train_data), len(items)) == (3, 3)
    for name, item in items.items():
        index = int(name.split("/")[1].split(".")[0])
        assert torch.allclose(item.camera_to_world.float(), POSES[index].float(), atol=1e-6)


def test_a_test_set_without_good_images_takes_none_from_training(root):
    for index in range(2):
        (root / "01Gorilla" / "test" / "good" / f"{index}.png").unlink()
    datamodule = _mad(root)
    assert (len(datamodule.train_data), len(datamodule.test_data)) == (6, 4)


def test_masks_named_like_their_images_and_folders_such_as_good_1(root):
    folder = root / "01Gorilla"
    (folder / "test" / "good").rename(folder / "test" / "good_1")
    for mask in (folder / "ground_truth" / "Burrs").iterdir():
        mask.rename(mask.with_name(mask.name.replace("_mask", "")))
    items = _by_name(_mad(root).test_data)
    assert not items["good_1/0.png"].gt_label
    assert int(items["Burrs/1.png"].gt_mask.sum()) == 28


def test_a_configuration_file_makes_the_datamodule(root, tmp_path):
    config = tmp_path / "mad.yaml"
    arguments = {"root": str(root), "category": "01Gorilla", "image_size": 8, "num_workers": 0}
    config.write_text(json.dumps({"class_path": "anomalib_pose.data.MAD", "init_args": arguments}))
    datamodule = MAD.from_config(config, **{"data.train_batch_size": 2})
    datamodule.setup()
    assert next(iter(datamodule.train_dataloader())).image.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("mode", ["none", "synthetic", "from_dir", "other"])
def test_unsupported_validation_splits_are_refused_by_the_constructor(root, mode):
    with pytest.raises(ValueError, match=f"same_as_test, from_test, from_train, got '{mode}'"):
        MAD(root, "01Gorilla", val_split_mode=mode)


def test_the_error_of_an_unknown_category_lists_the_existing_ones(root):
    datamodule = MAD(root, "02Unicorn")
    with pytest.raises(ValueError, match=r"no category '02Unicorn' in .*MAD-Sim; there are: 01Gorilla"):
        datamodule.prepare_data()
    with pytest.raises(ValueError, match="02Unicorn"):
        datamodule.setup()


def test_no_data_set_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: download MAD from https"):
        MAD(tmp_path / "nowhere").prepare_data()


def _remove(folder, pattern):
    for path in folder.glob(pattern):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "transforms.json").unlink(), FileNotFoundError, r"no transforms\.json in .*01Gorilla"),
        (
            lambda f: [path.unlink() for path in (f / "train/good").glob("*.png")],
            FileNotFoundError,
            r"images that do not exist in .*train/good/",
        ),
        (lambda f: (f / "train/good/3.png").write_bytes(b""), ValueError, r"good/3\.png is empty"),
        (lambda f: (f / "test/good/1.png").write_text("x"), ValueError, r"good/1\.png cannot be read"),
        (lambda f: _save(f / "train/good/3.png", np.zeros((9, 9, 3))), ValueError, r"good/3\.png is 9 x 9"),
        (lambda f: _save(f / "test/good/1.png", np.zeros((9, 16, 3))), ValueError, r"good/1\.png is 16 x 9.*aspect"),
        (lambda f: _remove(f, "test/*/*"), FileNotFoundError, r"no test images in .*01Gorilla/test"),
        (lambda f: (f / "test").rename(f / "tests"), FileNotFoundError, r"no folder .*01Gorilla/test"),
        (lambda f: (f / "ground_truth/Burrs").rename(f / "b"), FileNotFoundError, r"test/Burrs have no masks"),
        (lambda f: _remove(f, "ground_truth/Burrs/0*"), FileNotFoundError, r"Burrs/0\.png has no mask: .*0_mask\.png"),
        (lambda f: _remove(f, "test/Burrs/0*"), ValueError, r"Burrs/0_mask\.png has no image"),
        (lambda f: (f / "test/Burrs").rename(f / "b"), ValueError, r"Burrs/0_mask\.png has no image: there is no"),
        (
            lambda f: _save(f / "ground_truth/Burrs/0_mask.png", np.zeros((8, 8))),
            ValueError,
            r"Burrs/0_mask\.png is 8 x 8, but its image .*Burrs/0\.png is 16 x 16",
        ),
    ],
)
def test_bad_data_is_named_before_training(root, spoil, error, message):
    spoil(root / "01Gorilla")
    with pytest.raises(error, match=message):
        _mad(root)


def test_anomalibs_benchmark_makes_a_pair_of_the_image_size(root):
    anomalib_pose.register()
    arguments = {"root": str(root), "category": "01Gorilla", "image_size": 8, "num_workers": 0}
    datamodule = get_datamodule({"class_path": "MAD", "init_args": arguments})
    datamodule.setup()
    assert datamodule.train_data[0].image.shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"image_size is the longer side .* got \(16, 24\)"):
        _mad(root, image_size=(16, 24))


def test_an_image_size_of_0_is_refused(root):
    with pytest.raises(ValueError, match="image_size is the longer side of the images in pixels, 1 or more, got 0"):
        _mad(root, image_size=0)


def test_shared_bricks_in_mads_layout(shared):
    root = shared / "data" / "brickmad"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    datamodule = MAD(root, "car", image_size=100, num_workers=0)
    datamodule.setup()
    assert (len(datamodule.train_data), len(datamodule.test_data)) == (210, 65)
    assert sum(datamodule.test_data.samples.label_index) == 45
    lattice = mad_lattice(3.5)
    train = _by_name(datamodule.train_data.subsample([0, 100, 209]))
    for name, item in train.items():
        number = int(name.split("/")[1].split(".")[0])
        assert torch.allclose(item.camera_to_world.float(), lattice[number], atol=1e-5)
        assert float(item.intrinsics[0, 0]) == pytest.approx(1111.111 / 8, abs=1e-3)
    truth = json.loads((root / "_hidden" / "car.json").read_text())["images"]
    query = datamodule.test_data[40]
    stored = next(entry for entry in truth if query.image_path.endswith("car/" + entry["file"]))["transform_matrix"]
    by_hand = torch.tensor(stored) * torch.tensor([1.0, -1, -1, 1])
    assert torch.allclose(query.camera_to_world.float(), by_hand, atol=1e-6)
    mask = Image.open(query.mask_path)
    assert int(query.gt_mask.sum()) == pytest.approx((np.asarray(mask) > 0).sum() / 16, rel=0.2)
