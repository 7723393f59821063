# SPDX-License-Identifier: Apache-2.0
"""One photograph has one answer, or one refusal, through every entry point."""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.data.datasets import FolderDataset
from anomalib.data.utils import Split
from anomalib.engine import Engine
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_pose.data import PosedDataset, PosedFrame
from anomalib_pose.data.posed.dataset import PosedSample, query_frame
from anomalib_pose.data.posed.query_format import QueryFormat
from anomalib_pose.geometry import Camera, pose_error, view_sphere
from anomalib_pose.models import SplatPose, estimate_pose
from anomalib_pose.models.localize_run import localize
from sample_models import SIZE, TRAINING, make_fitted, save_checkpoint
from sample_scenes import make_toy

ROOT = Path(tempfile.gettempdir()) / "anomalib_pose_entry_points"
POSE = view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]
DISTORTION = (1.0, 0.5, 0.001, -0.002, 0.0)


def stored_format(distortion: tuple[float, ...] = (), stored: int = SIZE, **settings: bool) -> QueryFormat:
    """The format of square training images that are stored at a size and resized to the model's."""
    K = TRAINING.resized(stored, stored).K[0].double()
    frame = PosedFrame(Path("view.png"), None, None, K, stored, stored, distortion)
    return QueryFormat.of_frames([frame], SIZE, **settings)


@pytest.fixture(scope="module")
def model() -> SplatPose:
    fitted = make_fitted(visualizer=False, evaluator=False, starts=1)
    fitted.model.query_cameras.store(stored_format())
    return fitted


def render(width: int = SIZE, height: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """The toy on white and its opacity as bytes."""
    output = make_toy().render(Camera.from_fov(POSE, 0.7, width, height), torch.ones(3))
    color, alpha = output.rgb.clamp(0, 1), output.alpha.clamp(0, 1)
    return (color * 255).round().byte().numpy(), (alpha * 255).round().byte().numpy()


def plain(path: Path) -> None:
    Image.fromarray(render()[0]).save(path)


def cut_out(path: Path) -> None:
    """Transparent, with a noisy background under the transparency."""
    color, alpha = render()
    noise = np.random.default_rng(0).integers(0, 255, color.shape, dtype=np.uint8)
    color = np.where(alpha[..., None] > 127, color, noise)
    Image.fromarray(np.dstack([color, np.where(alpha > 127, 255, 0).astype(np.uint8)])).save(path)


def larger(path: Path) -> None:
    Image.fromarray(render(4 * SIZE, 4 * SIZE)[0]).save(path)


def smaller(path: Path) -> None:
    Image.fromarray(render(SIZE - 14, SIZE - 14)[0]).save(path)


def gray_16_bit(path: Path) -> None:
    gray = np.asarray(Image.fromarray(render()[0]).convert("L")).astype(np.uint16) * 257
    Image.fromarray(gray).save(path)


def palette(path: Path) -> None:
    Image.fromarray(render()[0]).quantize(200).save(path)


VARIANTS = [plain, cut_out, larger, smaller, gray_16_bit, palette]


def through_datamodule(model: SplatPose, path: Path) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The reference: the data set of this package's datamodules."""
    query_format = model.model.query_format
    with Image.open(path) as image:
        frame = query_frame(path, *image.size, query_format)
    dataset = PosedDataset([PosedSample(frame)], Split.TEST, query_format, segmentation=False)
    return predict(model, dataloaders=DataLoader(dataset, collate_fn=dataset.collate_fn))


def through_data_path(model: SplatPose, path: Path) -> tuple[float, torch.Tensor, torch.Tensor]:
    return predict(model, data_path=path.parent)


def through_loader(model: SplatPose, path: Path) -> tuple[float, torch.Tensor, torch.Tensor]:
    """A stock batch that anomalib's reader made."""
    dataset = PredictDataset(path)
    batch = dataset.collate_fn([dataset[0]])
    return outputs(model.predict_step(model.on_before_batch_transfer(batch, 0)))


def through_stock_folder(model: SplatPose, path: Path) -> tuple[float, torch.Tensor, torch.Tensor]:
    dataset = FolderDataset("stock", path.parent, split=Split.TRAIN)
    batch = dataset.collate_fn([dataset[0]])
    return outputs(model.predict_step(model.on_before_batch_transfer(batch, 0)))


ENTRY_POINTS = [through_data_path, through_loader, through_stock_folder]


def predict(model: SplatPose, **data: object) -> tuple[float, torch.Tensor, torch.Tensor]:
    engine = Engine(logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=ROOT)
    (batch,) = engine.predict(model, return_predictions=True, **data)
    return outputs(batch)


def outputs(batch) -> tuple[float, torch.Tensor, torch.Tensor]:
    return float(batch.pred_score[0]), batch.anomaly_map[0].squeeze(), batch.estimated_camera_to_world[0]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
def test_every_entry_point_gives_the_datamodules_answer(model, variant: Callable[[Path], None], tmp_path):
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    variant(path)
    score, anomaly_map, pose = through_datamodule(model, path)
    if variant is not gray_16_bit:
        assert math.degrees(pose_error(pose, POSE)[0]) < 1
    for entry_point in ENTRY_POINTS:
        other_score, other_map, other_pose = entry_point(model, path)
        assert other_score == pytest.approx(score, abs=1e-4), entry_point.__name__
        torch.testing.assert_close(other_map, anomaly_map, rtol=0, atol=1e-4)
        torch.testing.assert_close(other_pose, pose, rtol=0, atol=1e-4)
    torch.testing.assert_close(estimate_pose(model, path).camera.camera_to_world, pose, rtol=0, atol=1e-4)


def test_a_crop_is_refused_with_one_sentence(model, tmp_path):
    path = tmp_path / "photos" / "crop.png"
    path.parent.mkdir()
    Image.fromarray(render()[0][: 3 * SIZE // 4]).save(path)
    entry_points = [through_datamodule, *ENTRY_POINTS, lambda model, path: estimate_pose(model, path)]
    messages = set()
    for entry_point in entry_points:
        with pytest.raises(
            ValueError, match=r"crop\.png is 64 x 48, but the training views are 64 x 64: .* aspect"
        ) as info:
            entry_point(model, path)
        messages.add(str(info.value))
    assert len(messages) == 1
    with pytest.raises(ValueError, match="is 64 x 48, but the training views are 64 x 64"):
        model(torch.rand(1, 3, 48, 64))


def test_images_without_files_are_resized_and_maps_are_resized_back(model, tmp_path):
    larger(tmp_path / "a.png")
    output = model(torch.from_numpy(render(4 * SIZE, 4 * SIZE)[0] / 255).float().permute(2, 0, 1)[None])
    assert output.anomaly_map.shape == (1, 1, 4 * SIZE, 4 * SIZE)
    assert float(output.pred_score) == pytest.approx(through_datamodule(model, tmp_path / "a.png")[0], abs=1e-4)


def test_hidden_files_are_not_photographs_and_an_unreadable_one_is_named(model, tmp_path):
    plain(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    assert len(predict(model, data_path=tmp_path)) == 3
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"b\.png"):
        predict(model, data_path=tmp_path)


def test_the_lens_of_the_training_images_is_removed_from_queries(tmp_path):
    """The photograph is distorted by inverse sampling; undistorted, its pose is that of the pinhole image."""
    fitted = make_fitted(starts=1)
    fitted.model.query_cameras.store(stored_format(DISTORTION, 4 * SIZE))
    fitted.load_state_dict(fitted.state_dict())
    size = 4 * SIZE
    K = TRAINING.resized(size, size).K[0].double().numpy().copy()
    K[:2, 2] -= 0.5
    pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 1, 2).astype(np.float32)
    source = cv2.undistortPoints(pixels, K, np.array(DISTORTION), P=K).reshape(size, size, 2).astype(np.float32)
    photograph = cv2.remap(render(size, size)[0], source, None, cv2.INTER_LINEAR, borderValue=(255, 255, 255))
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(photograph).save(path)
    estimate = estimate_pose(fitted, path)
    fitted.model.query_cameras.store(stored_format((), size))
    distorted_estimate = estimate_pose(fitted, path)
    larger(path)
    pinhole_estimate = estimate_pose(fitted, path)
    errors = [
        math.degrees(pose_error(each.camera.camera_to_world, pinhole_estimate.camera.camera_to_world)[0])
        for each in (estimate, distorted_estimate)
    ]
    assert errors[0] < 0.1
    assert errors[1] > 1
    Image.fromarray(photograph).save(path)
    fitted.model.query_cameras.store(stored_format(DISTORTION, size))
    for entry_point in (through_datamodule, through_loader):
        torch.testing.assert_close(entry_point(fitted, path)[2], estimate.camera.camera_to_world, rtol=0, atol=1e-4)


def test_queries_of_both_orientations_get_their_camera_and_padding(tmp_path):
    """Landscape and portrait images of one lens, with the principal point off center."""
    K = torch.tensor([[150.0, 0, 70], [0, 150, 40], [0, 0, 1]], dtype=torch.float64)
    upright = torch.tensor([[150.0, 0, 52], [0, 150, 60], [0, 0, 1]], dtype=torch.float64)
    frames = [
        PosedFrame(Path("a.png"), None, None, K, 128, 96),
        PosedFrame(Path("b.png"), None, None, upright, 96, 128),
    ]
    query_format = QueryFormat.of_frames(frames, SIZE)
    assert query_format.size == (SIZE, SIZE)
    fitted = make_fitted(starts=1)
    fitted.model.query_cameras.store(query_format)
    for frame in frames:
        camera = Camera(POSE, frame.K.float(), frame.width, frame.height)
        output = make_toy().render(camera, torch.ones(3))
        path = tmp_path / frame.image_path
        Image.fromarray((output.rgb.clamp(0, 1) * 255).round().byte().numpy()).save(path)
        estimate = estimate_pose(fitted, path)
        assert math.degrees(pose_error(estimate.camera.camera_to_world, POSE)[0]) < 1
        assert (estimate.camera.width, estimate.camera.height) == (frame.width, frame.height)
        torch.testing.assert_close(estimate.camera.K.double(), frame.K, rtol=0, atol=1e-3)
        _, anomaly_map, pose = through_loader(fitted, path)
        assert anomaly_map.shape == (SIZE, SIZE)
        torch.testing.assert_close(pose, estimate.camera.camera_to_world, rtol=0, atol=1e-4)


def test_checkpoints_store_the_format_and_old_ones_load_without(model, tmp_path):
    model.model.query_cameras.store(stored_format(DISTORTION, 4 * SIZE))
    path = save_checkpoint(model, tmp_path / "model.ckpt")
    model.model.query_cameras.store(stored_format())
    (camera,) = SplatPose.load_from_checkpoint(path, map_location="cpu").model.query_format.cameras
    assert (camera.width, camera.distortion, camera.content) == (4 * SIZE, DISTORTION, (SIZE, SIZE))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if "query" not in name}
    torch.save(checkpoint, path)
    (camera,) = SplatPose.load_from_checkpoint(path, map_location="cpu").model.query_format.cameras
    assert (camera.width, camera.distortion) == (SIZE, ())
    torch.testing.assert_close(camera.K.float(), TRAINING.K[0])


def test_images_of_a_batch_do_not_depend_on_each_other(model, tmp_path):
    """One photograph with a mask, one without."""
    cut_out(tmp_path / "a.png")
    larger(tmp_path / "b.png")
    dataset = PredictDataset(tmp_path)
    engine = Engine(logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=ROOT)
    loader = DataLoader(dataset, batch_size=2, collate_fn=dataset.collate_fn)
    (batch,) = engine.predict(model, dataloaders=loader, return_predictions=True)
    for index, name in enumerate(("a.png", "b.png")):
        single, _, pose = through_loader(model, tmp_path / name)
        assert float(batch.pred_score[index]) == pytest.approx(single, abs=1e-4)
        torch.testing.assert_close(batch.estimated_camera_to_world[index], pose, rtol=0, atol=1e-4)
    assert batch.stored_size.tolist() == [[SIZE, SIZE], [4 * SIZE, 4 * SIZE]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -100.0, 0.0])
def test_intrinsics_that_are_not_finite_are_refused_before_a_run(model, value, tmp_path):
    plain(tmp_path / "a.png")
    K = torch.tensor([[value, 0, 32], [0, 90, 32], [0, 0, 1]])
    for call in (
        lambda: estimate_pose(model, tmp_path / "a.png", K),
        lambda: localize(model, tmp_path, tmp_path / "poses.json", intrinsics=K, progress=False),
    ):
        with pytest.raises(ValueError, match="intrinsics K should"):
            call()
    assert not (tmp_path / "poses.json").exists()
