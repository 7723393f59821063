# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_pose.data import PosedFolder
from anomalib_pose.geometry import Camera, view_sphere

POSES = view_sphere(10, 3.0).double()
POINT = torch.tensor([[0.3, -0.2, 0.25]], dtype=torch.float64)
FOCAL = 24.0


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


def _intrinsics(width, height, focal=FOCAL):
    return torch.tensor([[focal, 0, width / 2 + 1], [0, focal * 1.1, height / 2 - 1], [0, 0, 1]], dtype=torch.float64)


def _spot(pose, width, height, focal=FOCAL):
    """Where the camera sees POINT, an image has a round spot: share of each pixel that it darkens."""
    uv, _ = Camera(pose, _intrinsics(width, height, focal), width, height).project(POINT)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.exp(-((x - float(uv[0, 0])) ** 2 + (y - float(uv[0, 1])) ** 2) / (2 * 2.0**2))


def _frame(folder, index, width=24, height=16, focal=FOCAL, **extra):
    spot = _spot(POSES[index], width, height, focal)
    _save(folder / f"images/{index}.png", np.repeat(255 * (1 - spot)[..., None], 3, -1).round())
    K = _intrinsics(width, height, focal)
    lens = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "w": width, "h": height}
    matrix = POSES[index] * torch.tensor([1.0, -1, -1, 1])
    entry = {"file_path": f"images/{index}.png", "transform_matrix": matrix.tolist()}
    return entry | {key: float(value) for key, value in lens.items()} | extra


def _write(folder, frames):
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cup"
    folder.mkdir()
    _write(folder, [_frame(folder, index) for index in range(10)])
    return folder


def _setup(root, **arguments):
    datamodule = PosedFolder(root, num_workers=0, **arguments)
    datamodule.setup()
    return datamodule


def _numbers(data):
    return {int(item.image_path.split("/")[-1].split(".")[0]): item for item in data}


def _spot_is_at_its_projection(item, tolerance=0.25):
    """Whether the item's camera and its image agree on where the point is, in pixels."""
    dark = (1 - item.image[0]).double()
    dark = torch.where(dark > 0.1, dark, 0)
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in dark.shape), indexing="ij")
    centroid = torch.stack([(x * dark).sum(), (y * dark).sum()]) / dark.sum()
    height, width = dark.shape
    projection = Camera(item.camera_to_world.double(), item.intrinsics.double(), width, height).project(POINT)[0][0]
    return float(torch.dist(centroid, projection)) < tolerance


def test_every_nth_image_is_held_out_with_its_true_pose(root, caplog):
    datamodule = _setup(root, holdout_every=4, train_batch_size=7)
    assert datamodule.category == "cup"
    held_out, trained = _numbers(datamodule.test_data), _numbers(datamodule.train_data)
    assert sorted(held_out) == sorted(_numbers(datamodule.val_data)) == [0, 4, 8]
    assert sorted(trained) == [1, 2, 3, 5, 6, 7, 9]
    for index, item in (held_out | trained).items():
        assert torch.allclose(item.camera_to_world.float(), POSES[index].float(), atol=1e-6)
        assert item.gt_label == 0
        assert item.gt_mask is None
        assert item.foreground is None
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.image.shape == (7, 3, 16, 24)
    assert next(iter(datamodule.test_dataloader())).camera_to_world.shape == (1, 4, 4)
    assert "are good: AUROC" in caplog.text


@pytest.mark.parametrize("image_size", [None, 12, 36])
def test_the_longer_side_is_resized_and_the_intrinsics_follow(root, image_size):
    for item in _setup(root, image_size=image_size).train_data:
        width = image_size or 24
        assert item.image.shape == (3, width * 2 // 3, width)
        assert _spot_is_at_its_projection(item)


def test_photos_of_slightly_different_sizes_are_resized_to_one(root):
    frames = [_frame(root, index) for index in range(8)]
    frames += [_frame(root, 8, 48, 32, focal=30.0), _frame(root, 9, 72, 49, focal=50.0)]
    _write(root, frames)
    datamodule = _setup(root, holdout_every=5, train_batch_size=8)
    items = _numbers(datamodule.train_data)
    assert {tuple(item.image.shape) for item in items.values()} == {(3, 16, 24)}
    # A photo with 49 rows is squeezed to 16: the scales of the axes differ.
    expected = _intrinsics(72, 49, 50.0) * torch.tensor([24 / 72, 16 / 49, 1])[:, None]
    assert torch.allclose(items[9].intrinsics, expected.float())
    assert _spot_is_at_its_projection(items[9])
    assert _spot_is_at_its_projection(items[8])
    next(iter(datamodule.train_dataloader()))


def test_photos_of_another_aspect_are_refused(root):
    frames = [_frame(root, index) for index in range(3)] + [_frame(root, 3, 24, 20)]
    _write(root, frames)
    with pytest.raises(ValueError, match=r"images/3\.png is 24 x 20, .*\(24 x 16\)"):
        _setup(root)


def test_masks_of_the_object_become_the_foreground(root):
    frames = []
    for index in range(4):
        mask = np.zeros((16, 24))
        mask[4:12, 4 : 12 + 2 * index] = 255
        _save(root / f"masks/{index}.png", mask)
        frames.append(_frame(root, index, mask_path=f"masks/{index}.png"))
    _write(root, frames)
    item = _numbers(_setup(root, holdout_every=3).train_data)[2]
    expected = torch.zeros(16, 24)
    expected[4:12, 4:16] = 1
    assert torch.equal(item.foreground, expected)
    assert item.image[:, 0, 0].max() == 1
    smaller = _numbers(_setup(root, holdout_every=3, image_size=12).train_data)[2]
    assert smaller.foreground.shape == (8, 12)
    assert float(smaller.foreground[3:5, 3:7].min()) == 1


@pytest.mark.parametrize(("unmasked", "used"), [((3,), 7), ((1, 5), 6), ((0, 1, 2), None), ((), 8), (range(8), 8)])
def test_frames_without_mask_among_frames_with_masks_are_reported(root, caplog, unmasked, used):
    _save(root / "masks/mask.png", np.arange(16 * 24).reshape(16, 24) % 24 // 12 * 255)
    masks = [{} if index in unmasked else {"mask_path": "masks/mask.png"} for index in range(8)]
    _write(root, [_frame(root, index, **masks[index]) for index in range(8)])
    if used is None:
        with pytest.raises(ValueError, match=r"3 of 8 images in .* no mask of the object: 0\.png, 1\.png, 2\.png"):
            _setup(root)
        return
    data = _setup(root, holdout_every=8)
    assert len(data.train_data) + len(data.test_data) == used
    messages = [record.getMessage() for record in caplog.records if "no mask" in record.getMessage()]
    assert len(messages) == (used < 8)
    assert all(f"{len(unmasked)} of 8" in message and f"{unmasked[0]}.png" in message for message in messages)


def test_the_background_is_white_only_with_white_background(root):
    gray = np.full((16, 24, 3), 51)
    mask = np.zeros((16, 24))
    mask[4:12, 4:12] = 255
    frames = []
    for index in range(3):
        frames.append(_frame(root, index, mask_path="mask.png"))
        _save(root / f"images/{index}.png", gray)
    _save(root / "mask.png", mask)
    _write(root, frames)
    as_is = _setup(root).train_data[0]
    painted = _setup(root, white_background=True).train_data[0]
    assert torch.allclose(as_is.image, torch.full((3, 16, 24), 0.2))
    assert torch.allclose(painted.image[0], 1 - 0.8 * painted.foreground)


def test_distorted_photos_are_undistorted_with_their_masks(root):
    lens = {"k1": -0.3, "k2": 0.05}
    _save(root / "mask.png", np.full((16, 24), 255))
    frames = [_frame(root, index, mask_path="mask.png", **lens) for index in range(3)]
    # Draw the spot where the distorted camera sees it.
    for index in range(3):
        uv, _ = Camera(POSES[index], _intrinsics(24, 16), 24, 16).project(POINT)
        a, b = (uv[0, 0] - 13) / FOCAL, (uv[0, 1] - 7) / (FOCAL * 1.1)
        radial = 1 - 0.3 * (a * a + b * b) + 0.05 * (a * a + b * b) ** 2
        u, v = float(FOCAL * a * radial + 13), float(FOCAL * 1.1 * b * radial + 7)
        x, y = np.meshgrid(np.arange(24) + 0.5, np.arange(16) + 0.5)
        spot = np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8)
        _save(root / f"images/{index}.png", np.repeat(255 * (1 - spot)[..., None], 3, -1).round())
    _write(root, frames)
    items = list(_setup(root).train_data)
    assert all(_spot_is_at_its_projection(item) for item in items)
    assert float(items[0].foreground.mean()) == 1


def _queries(root, with_masks=True):
    for kind in ("good", "dent"):
        for index in range(2):
            _save(root / f"queries/{kind}/{index}.png", np.full((32, 48, 3), 100 * index))
    mask = np.zeros((32, 48))
    mask[:16] = 255
    if with_masks:
        for index in range(2):
            _save(root / f"queries_gt/dent/{index}.png", mask)


def test_labeled_queries_with_masks(root):
    _queries(root)
    datamodule = _setup(root, query_dir="queries", mask_dir="queries_gt")
    assert len(datamodule.train_data) == 10
    assert len(datamodule.test_data) == len(datamodule.val_data) == 4
    items = list(datamodule.test_data)
    assert [bool(item.gt_label) for item in items] == [True, True, False, False]
    assert bool(items[0].gt_mask[:8].all())
    assert not items[0].gt_mask[8:].any()
    assert not items[3].gt_mask.any()
    # The queries are twice as large as the training images: they are brought to one size with one camera.
    assert items[0].image.shape == (3, 16, 24)
    assert torch.allclose(items[0].intrinsics, _intrinsics(24, 16).float())
    assert items[0].camera_to_world is None


def test_labeled_queries_without_masks_are_classified(root):
    _queries(root, with_masks=False)
    datamodule = _setup(root, query_dir=str(root / "queries"))
    batch = next(iter(datamodule.test_dataloader()))
    assert batch.gt_mask is None
    assert bool(batch.gt_label[0])


def test_queries_without_labels_are_predicted_but_not_tested(root):
    for index in range(3):
        _save(root / f"shelf/{index}.jpg", np.zeros((16, 24, 3)))
    datamodule = _setup(root, query_dir="shelf", holdout_every=5)
    batches = list(datamodule.predict_dataloader())
    assert [batch.image_path[0].split("/")[-1] for batch in batches] == ["0.jpg", "1.jpg", "2.jpg"]
    assert all(batch.gt_label is None and batch.gt_mask is None for batch in batches)
    assert sorted(_numbers(datamodule.val_data)) == [0, 5]
    assert len(datamodule.train_data) == 8
    assert not any(batch.gt_label.any() for batch in datamodule.val_dataloader())
    with pytest.raises(ValueError, match=r"shelf have no labels, so they can be predicted but not tested"):
        datamodule.test_dataloader()


def test_queries_of_training_images_with_different_cameras_get_the_median(root, caplog):
    _queries(root)
    _write(root, [_frame(root, index, focal=focal) for index, focal in enumerate((20.0, 22.0, 90.0))])
    datamodule = _setup(root, query_dir="queries", mask_dir="queries_gt")
    assert float(datamodule.test_data[0].intrinsics[0, 0]) == pytest.approx(22)
    assert "different intrinsics" in caplog.text


def test_queries_of_differently_distorted_cameras_are_refused(root):
    _queries(root)
    _write(root, [_frame(root, 0, k1=0.1), _frame(root, 1)])
    with pytest.raises(ValueError, match="different cameras with distortion"):
        _setup(root, query_dir="queries", mask_dir="queries_gt")


def _mixed(root):
    _queries(root)
    _save(root / "queries/loose.png", np.zeros((16, 24, 3)))


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda r: [(r / "queries").mkdir(), (r / "transforms.json").unlink()],
            FileNotFoundError,
            r"no transforms\.json in .*cup",
        ),
        (lambda r: None, FileNotFoundError, r"no folder .*queries"),
        (lambda r: (r / "queries").mkdir(), FileNotFoundError, r"no queries in .*queries"),
        (_mixed, ValueError, r"loose\.png for example, and partly in subfolders, (good|dent)"),
        (lambda r: _save(r / "queries/a.png", np.zeros((9, 9, 3))), ValueError, r"a\.png is 9 x 9, .*aspect"),
        (lambda r: [(r / "queries").mkdir(), (r / "queries/a.png").touch()], ValueError, r"a\.png is empty"),
    ],
)
def test_bad_queries_are_named_before_training(root, spoil, error, message):
    spoil(root)
    with pytest.raises(error, match=message):
        _setup(root, query_dir="queries")


def test_masks_need_queries_sorted_by_kind(root):
    _save(root / "queries/a.png", np.zeros((16, 24, 3)))
    (root / "gt").mkdir()
    with pytest.raises(ValueError, match=r"mask_dir \(.*gt\) needs queries in subfolders"):
        _setup(root, query_dir="queries", mask_dir="gt")
    with pytest.raises(ValueError, match="give query_dir too"):
        PosedFolder(root, mask_dir="gt")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        _setup(root, query_dir="queries", mask_dir="nowhere")


def test_holding_out_everything_is_refused(root):
    with pytest.raises(ValueError, match=r"holdout_every should be 2 or more.*got 1"):
        PosedFolder(root, holdout_every=1)
    _write(root, [_frame(root, 0)])
    with pytest.raises(ValueError, match="one posed image: holding one out leaves none"):
        _setup(root)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nothing"):
        PosedFolder(tmp_path / "nothing").prepare_data()


def test_shared_tankard(shared):
    root = shared / "data" / "mary_rose"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    datamodule = PosedFolder(root, holdout_every=8, image_size=200, num_workers=0)
    datamodule.setup()
    assert (len(datamodule.train_data), len(datamodule.test_data)) == (60, 9)
    frame = json.loads((root / "transforms.json").read_text())["frames"][16]
    item = next(item for item in datamodule.test_data if item.image_path.endswith(frame["file_path"]))
    assert float(item.intrinsics[0, 0]) == pytest.approx(frame["fl_x"] / 4, rel=1e-6)
    by_hand = torch.tensor(frame["transform_matrix"]) * torch.tensor([1.0, -1, -1, 1])
    assert torch.allclose(item.camera_to_world.float(), by_hand, atol=1e-5)
    mask = np.asarray(Image.open(root / frame["mask_path"]))
    assert float(item.foreground.mean()) == pytest.approx((mask / mask.max()).mean(), abs=2e-3)
    # The rays through the middle of the training masks meet inside the object, in front of every camera.
    normal, right = torch.zeros(3, 3), torch.zeros(3)
    for item in datamodule.train_data:
        pixel = torch.nonzero(item.foreground > 0.5).float().mean(0).flip(0) + 0.5
        ray = (
            item.camera_to_world[:3, :3].float() @ torch.linalg.inv(item.intrinsics) @ torch.cat([pixel, torch.ones(1)])
        )
        across = torch.eye(3) - torch.outer(ray, ray) / (ray @ ray)
        normal, right = normal + across, right + across @ item.camera_to_world[:3, 3].float()
    middle = torch.linalg.solve(normal, right)
    for item in datamodule.test_data:
        uv, z = Camera(item.camera_to_world, item.intrinsics, 200, 200).project(middle[None])
        assert z > 0
        assert item.foreground[int(uv[0, 1]), int(uv[0, 0])] > 0.5
