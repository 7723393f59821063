# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import Image

import anomalib_pose
from anomalib_pose.data import MIP
from anomalib_pose.geometry import Camera, view_sphere

ANGLE = 0.9
SIZE = 16
WIDTH, HEIGHT = 24, 18
FOCAL = (26.0, 30.0)
POSES = view_sphere(12, 3.0).double()
TO_OPENGL = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
POINT = torch.tensor([[0.2, -0.3, 0.25]], dtype=torch.float64)
KINDS = ("good_1", "good_2", "rust", "dent")


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    # JPEG's losses are kept below what the tests look at.
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **({"quality": 98} if path.suffix == ".jpg" else {}))


def _spot(camera):
    """White image with a dark round spot where the camera sees POINT."""
    uv, _ = camera.project(POINT)
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    spot = np.exp(-((x - float(uv[0, 0])) ** 2 + (y - float(uv[0, 1])) ** 2) / (2 * (camera.width / 10) ** 2))
    return np.repeat(255 * (1 - spot)[..., None], 3, -1).round()


def _centroid(image):
    """Weighted mean of the pixels' coordinates, weighted with darkness."""
    dark = (1 - image[0]).double()
    dark = torch.where(dark > 0.1, dark, 0)
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in dark.shape), indexing="ij")
    return torch.stack([(x * dark).sum(), (y * dark).sum()]) / dark.sum()


def _camera(pose, width=WIDTH, height=HEIGHT):
    """The real camera, whose axes have different focal lengths, for images of the given size."""
    K = torch.tensor([[FOCAL[0], 0, WIDTH / 2 + 1], [0, FOCAL[1], HEIGHT / 2 - 0.5], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, K, WIDTH, HEIGHT).resized(width, height)


def _mask(width, height, number):
    mask = np.zeros((height, width))
    mask[2:6, 3 : 9 + number] = 255
    return mask


@pytest.fixture
def synthetic(tmp_path):
    """Six training views; queries in two lights and of two defects, two each."""
    folder = tmp_path / "MIP" / "Gear"
    frames = []
    for index in range(6):
        _save(folder / f"train/{index:03}.png", _spot(Camera.from_fov(POSES[index], ANGLE, SIZE, SIZE)))
        frames.append({"file_path": f"./train/{index:03}.png", "transform_matrix": (POSES[index] * TO_OPENGL).tolist()})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": frames}))
    for kind in KINDS:
        for index in range(2):
            _save(folder / f"test/{kind}/{index}.png", _spot(Camera.from_fov(POSES[index + 6], ANGLE, SIZE, SIZE)))
            if not kind.startswith("good"):
                _save(folder / f"ground_truth/{kind}/{index}.png", _mask(SIZE, SIZE, index))
    return tmp_path / "MIP"


def _colmap_pose(pose):
    """Quaternion wxyz and translation of world to camera; no angle here is near half a turn."""
    rotation, center = pose[:3, :3].numpy().T, pose[:3, 3].numpy()
    w = np.sqrt(1 + np.trace(rotation)) / 2
    skew = rotation - rotation.T
    return [w, *(np.array([skew[2, 1], skew[0, 2], skew[1, 0]]) / (4 * w)), *(-rotation @ center)]


@pytest.fixture
def real(tmp_path):
    """Photographs of one camera that is not square, and queries of the double size."""
    pytest.importorskip("pycolmap", reason="needs the extra anomalib-pose[colmap]")
    folder = tmp_path / "Colmap" / "01Valve"
    turned = [pose for pose in POSES if torch.trace(pose[:3, :3]) > -0.9]
    lines = []
    for index, pose in enumerate(turned[:6]):
        _save(folder / f"images/{index}.png", _spot(_camera(pose)))
        lines += [f"{index + 1} {' '.join(map(repr, map(float, _colmap_pose(pose))))} 1 {index}.png", ""]
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    K = _camera(POSES[0]).K
    (model / "cameras.txt").write_text(f"1 PINHOLE {WIDTH} {HEIGHT} {K[0, 0]} {K[1, 1]} {K[0, 2]} {K[1, 2]}\n")
    (model / "points3D.txt").write_text("")
    for kind in ("good", "scratch"):
        for index in range(2):
            _save(folder / f"test/{kind}/{index}.jpg", _spot(_camera(POSES[index + 6], 2 * WIDTH, 2 * HEIGHT)))
    for index in range(2):
        _save(folder / f"ground_truth/scratch/{index}.png", _mask(2 * WIDTH, 2 * HEIGHT, index))
    return tmp_path / "Colmap", turned[:6]


def _setup(root, category, **arguments):
    datamodule = MIP(root, category, num_workers=0, **arguments)
    datamodule.setup()
    return datamodule


def _by_name(data):
    return {"/".join(item.image_path.split("/")[-2:]): item for item in data}


def test_mip_is_a_public_name():
    assert anomalib_pose.MIP is MIP


def test_training_views_lie_directly_in_train(synthetic):
    items = _by_name(_setup(synthetic, "Gear").train_data)
    assert sorted(items) == [f"train/{index:03}.png" for index in range(6)]
    focal = float(SIZE / 2 / np.tan(ANGLE / 2))
    for index in range(6):
        item = items[f"train/{index:03}.png"]
        assert torch.allclose(item.camera_to_world.float(), POSES[index].float(), atol=1e-6)
        assert torch.allclose(item.intrinsics, torch.tensor([[focal, 0, 8], [0, focal, 8], [0, 0, 1]]))
        assert item.gt_label == 0


def test_types_are_good_by_their_name_up_to_the_underscore(synthetic):
    (synthetic / "Gear/test/dent").rename(synthetic / "Gear/test/goodish")
    (synthetic / "Gear/ground_truth/dent").rename(synthetic / "Gear/ground_truth/goodish")
    items = _by_name(_setup(synthetic, "Gear").test_data)
    labels = {name: bool(item.gt_label) for name, item in items.items()}
    assert labels == {
        f"{kind}/{index}.png": kind in {"rust", "goodish"}
        for kind in ("good_1", "good_2", "rust", "goodish")
        for index in range(2)
    }
    assert not any(items[f"{kind}/{index}.png"].gt_mask.any() for kind in KINDS[:2] for index in range(2))
    assert all(item.camera_to_world is None for item in items.values())


def test_masks_are_named_like_their_images(synthetic):
    items = _by_name(_setup(synthetic, "Gear").test_data)
    for kind in ("rust", "dent"):
        for index in range(2):
            expected = torch.from_numpy(_mask(SIZE, SIZE, index) > 0)
            assert torch.equal(torch.as_tensor(items[f"{kind}/{index}.png"].gt_mask), expected)


def test_true_poses_reach_the_queries(synthetic):
    entries = [
        {"file": f"test/{kind}/{index}.png", "transform_matrix": (POSES[index + 6] * TO_OPENGL).tolist()}
        for kind in KINDS
        for index in range(2)
    ]
    (synthetic / "_hidden").mkdir()
    (synthetic / "_hidden" / "Gear.json").write_text(json.dumps({"images": entries}))
    for name, item in _by_name(_setup(synthetic, "Gear", image_size=12).test_data).items():
        index = int(name.split("/")[1].split(".")[0])
        assert torch.allclose(item.camera_to_world.float(), POSES[index + 6].float(), atol=1e-6)
        camera = Camera(item.camera_to_world.double(), item.intrinsics.double(), 12, 12)
        assert torch.dist(_centroid(item.image), camera.project(POINT)[0][0]) < 0.25


@pytest.mark.parametrize("image_size", [None, 12])
def test_photographs_and_their_cameras_agree(real, image_size):
    root, poses = real
    items = _by_name(_setup(root, "01Valve", image_size=image_size).train_data)
    assert sorted(items) == [f"images/{index}.png" for index in range(6)]
    for index, pose in enumerate(poses):
        item = items[f"images/{index}.png"]
        assert torch.allclose(item.camera_to_world.float(), pose.float(), atol=1e-6)
        width, height = image_size or WIDTH, (image_size or WIDTH) * 3 // 4
        assert item.image.shape == (3, height, width)
        expected = Camera(item.camera_to_world.double(), item.intrinsics.double(), width, height).project(POINT)[0][0]
        assert torch.dist(_centroid(item.image), expected) < 0.3


def test_queries_get_the_training_cameras_intrinsics_at_their_size(real):
    items = _by_name(_setup(real[0], "01Valve").test_data)
    assert {name: bool(item.gt_label) for name, item in items.items()} == {
        f"{kind}/{index}.jpg": kind == "scratch" for kind in ("good", "scratch") for index in range(2)
    }
    for name, item in items.items():
        # Photographs of 48 x 36 are given at 24 x 18, so the training camera's numbers come back.
        assert torch.allclose(item.intrinsics, torch.tensor([[26.0, 0, 13], [0, 30, 8.5], [0, 0, 1]]))
        pose = POSES[6 + int(name.split("/")[1][0])]
        expected = Camera(pose, item.intrinsics.double(), WIDTH, HEIGHT).project(POINT)[0][0]
        assert torch.dist(_centroid(item.image), expected) < 0.3
    frame = _setup(real[0], "01Valve").test_data.samples.iloc[0].frame
    assert torch.allclose(frame.K, torch.tensor([[52.0, 0, 26], [0, 60, 17], [0, 0, 1]], dtype=torch.float64))
    assert bool(items["scratch/1.jpg"].gt_mask[1:3, 2:4].all())


def test_queries_of_several_training_cameras_get_the_median(real, caplog):
    model = real[0] / "01Valve" / "sparse" / "0"
    cameras = [f"{n} PINHOLE {WIDTH} {HEIGHT} {focal} {focal + 1} 12 9" for n, focal in ((1, 60), (2, 30), (3, 32))]
    (model / "cameras.txt").write_text("\n".join(cameras) + "\n")
    images = (model / "images.txt").read_text().splitlines()
    for line in range(0, len(images), 2):
        images[line] = images[line].replace(f" 1 {line // 2}.png", f" {line // 2 % 3 + 1} {line // 2}.png")
    (model / "images.txt").write_text("\n".join(images) + "\n")
    datamodule = _setup(real[0], "01Valve")
    assert [float(item.intrinsics[0, 0]) for item in datamodule.train_data] == [60, 30, 32, 60, 30, 32]
    for item in datamodule.test_data:
        assert torch.allclose(item.intrinsics, torch.tensor([[32.0, 0, 12], [0, 33, 9], [0, 0, 1]]))
    assert "different intrinsics" in caplog.text


def test_alpha_becomes_the_foreground_on_white(synthetic):
    rgba = np.zeros((SIZE, SIZE, 4))
    rgba[4:12, 4:12] = [0, 0, 255, 255]
    for path in (synthetic / "Gear/train").iterdir():
        _save(path, rgba)
    _save(synthetic / "Gear/test/good_1/0.png", rgba)
    datamodule = _setup(synthetic, "Gear")
    for item in (datamodule.train_data[0], _by_name(datamodule.test_data)["good_1/0.png"]):
        assert torch.equal(item.foreground, torch.from_numpy(rgba[..., 3] / 255).float())
        assert torch.equal(torch.as_tensor(item.image[0]), 1 - item.foreground)


def test_the_layout_can_be_chosen_where_both_are_there(real, synthetic):
    folder = real[0] / "01Valve"
    for name in ("transforms.json", "train"):
        (synthetic / "Gear" / name).rename(folder / name)
    with pytest.raises(ValueError, match="aspect"):  # square training views and photographs that are not
        _setup(real[0], "01Valve")
    assert len(_setup(real[0], "01Valve", layout="colmap").test_data) == 4
    with pytest.raises(FileNotFoundError, match=r"no transforms\.json in .*Gear"):
        _setup(synthetic, "Gear", layout="synthetic")
    with pytest.raises(FileNotFoundError, match=r"no complete COLMAP model in .*Gear/sparse/0"):
        _setup(synthetic, "Gear", layout="colmap")
    with pytest.raises(
        FileNotFoundError, match=r"neither .*Gear/transforms\.json nor a COLMAP model in .*Gear/sparse/0"
    ):
        _setup(synthetic, "Gear")
    with pytest.raises(ValueError, match="layout should be one of auto, synthetic, colmap, got 'other'"):
        MIP(synthetic, "Gear", layout="other")


def test_a_configuration_file_makes_the_datamodule(synthetic, tmp_path):
    config = tmp_path / "mip.yaml"
    arguments = {"root": str(synthetic), "category": "Gear", "layout": "synthetic", "image_size": 8, "num_workers": 0}
    config.write_text(json.dumps({"class_path": "anomalib_pose.data.MIP", "init_args": arguments}))
    datamodule = MIP.from_config(config, **{"data.train_batch_size": 2})
    datamodule.setup()
    assert next(iter(datamodule.train_dataloader())).image.shape == (2, 3, 8, 8)


def test_the_categories_of_both_layouts_are_listed(synthetic, real):
    with pytest.raises(ValueError, match=r"no category 'Box' in .*MIP; there are: Gear\."):
        MIP(synthetic, "Box").prepare_data()
    with pytest.raises(ValueError, match=r"no category '02Tube' in .*Colmap; there are: 01Valve\."):
        MIP(real[0], "02Tube").prepare_data()


def test_no_data_set_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: download MIP from the authors of PIAD"):
        MIP(tmp_path / "nowhere").prepare_data()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda f: [path.unlink() for path in (f / "train").glob("*.png")],
            FileNotFoundError,
            r"images that do not exist in .*train/0",
        ),
        (lambda f: (f / "ground_truth/rust").rename(f / "b"), FileNotFoundError, r"test/rust have no masks"),
        (
            lambda f: (f / "ground_truth/rust/0.png").rename(f / "ground_truth/rust/0_mask.png"),
            FileNotFoundError,
            r"rust/0\.png has no mask: expected .*ground_truth/rust/0\.png\.",
        ),
        (lambda f: (f / "test/rust/0.png").unlink(), ValueError, r"ground_truth/rust/0\.png has no image"),
        (
            lambda f: _save(f / "ground_truth/rust/0.png", np.zeros((8, 8))),
            ValueError,
            r"rust/0\.png is 8 x 8, but its image .*rust/0\.png is 16 x 16",
        ),
    ],
)
def test_bad_data_is_named_before_training(synthetic, spoil, error, message):
    spoil(synthetic / "Gear")
    with pytest.raises(error, match=message):
        _setup(synthetic, "Gear")


def test_the_error_of_a_camera_with_distortion_names_colmaps_undistorter(real):
    model = real[0] / "01Valve" / "sparse" / "0"
    (model / "cameras.txt").write_text(f"1 SIMPLE_RADIAL_FISHEYE {WIDTH} {HEIGHT} 26 12 9 0.1\n")
    with pytest.raises(ValueError, match=r"camera model SIMPLE_RADIAL_FISHEYE: .*colmap image_undistorter"):
        _setup(real[0], "01Valve")
