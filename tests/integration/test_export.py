# SPDX-License-Identifier: Apache-2.0
"""The exported graph computes the same in PyTorch, ONNX Runtime and OpenVINO."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType
from anomalib.post_processing import PostProcessor

from anomalib_pose.compare import CalibratedComparator, NetworkSettings, SurfaceStatistics
from anomalib_pose.data import MAD
from anomalib_pose.deploy import DetectorSettings, ExportedDetector, build_detector
from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.scene import FitSettings, GaussianScene, NearbyViews, fit_gaussians, white_foreground
from sample_scenes import make_toy

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

POSES = view_sphere(30, 3.0, 1.2, -1.2)
CAMERA = Camera.from_fov(torch.eye(4), 0.7, 80, 80)
SETTINGS = DetectorSettings(views=40, size=64, starts=2, neighbours=2, steps=(1, 1, 1))
# Not the toy's poles: there the last digit decides the rotation about the axis.
QUERIES = view_sphere(7, 3.0, 0.8, -0.8)[1::2]


def glossy_toy() -> GaussianScene:
    """The toy with colors that depend on the viewing direction, as in fitted scenes."""
    raw = make_toy().raw
    gloss = 0.1 * torch.randn(len(raw["sh"]), 8, 3, generator=torch.Generator().manual_seed(2))
    scene = GaussianScene(2, "cpu")
    scene.set_raw({**raw, "sh": torch.cat([raw["sh"], gloss], 1)})
    return scene


def photographs(size: int) -> torch.Tensor:
    camera = CAMERA.resized(size, size)
    images = [glossy_toy().render(camera.with_pose(pose), torch.ones(3)).rgb for pose in QUERIES]
    return torch.stack(images).permute(0, 3, 1, 2).clamp(0, 1).contiguous()


@pytest.fixture(scope="module")
def exported() -> ExportedDetector:
    comparator = CalibratedComparator(NetworkSettings("test_efficientnet.r160_in1k", (0, 1), pretrained=False))
    comparator.extractor.loaded.fill_(value=True)
    darker, nearby = CAMERA.with_pose(POSES), NearbyViews(2)
    nearby.store_residuals(
        glossy_toy(), 0.9 * glossy_toy().render(darker, torch.ones(3)).rgb.permute(0, 3, 1, 2), darker
    )
    options = {"nearby": nearby, "relight": True}  # all parts that a graph can have
    detector = build_detector(glossy_toy(), POSES, CAMERA, comparator, SETTINGS, white_background=True, **options)
    normal = detector.reference(photographs(80))
    surface = SurfaceStatistics()
    maps = detector.comparator.compare_windows(*normal[:3])
    surface.fit(zip(maps, normal.points, normal.alpha, strict=True), glossy_toy().center, glossy_toy().extent)
    detector.calibrate(photographs(80), surface)
    processor = PostProcessor()
    limits = {"_image_threshold": 3.0, "_pixel_threshold": 3.0, "image_min": 0.0, "image_max": 10.0}
    for name, value in {**limits, "pixel_min": 0.0, "pixel_max": 10.0}.items():
        getattr(processor, name).fill_(value)
    return ExportedDetector(detector, processor)


def outputs(model: ExportedDetector, images: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        prediction = model(images)
    return {name: value.numpy() for name, value in prediction._asdict().items() if value is not None}


@pytest.fixture(scope="module")
def onnx_path(exported, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    path = exported.to_onnx(folder)
    assert {file.name for file in folder.iterdir()} == {"weights"}, "an export leaves nothing but its result"
    return path


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    """Scores agree, and maps do except for pixels that a surface point reaches in one of the two only."""
    np.testing.assert_allclose(actual["pred_score"], expected["pred_score"], atol=tolerance)
    difference = np.abs(actual["anomaly_map"] - expected["anomaly_map"])
    # as many pixels change in PyTorch when the image is 1e-7 brighter
    assert (difference > tolerance).mean() < 0.01
    assert difference.max() < 100 * tolerance


@pytest.fixture(scope="module")
def runtimes(onnx_path) -> tuple[onnxruntime.InferenceSession, openvino.CompiledModel]:
    compiled = openvino.Core().compile_model(str(onnx_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return onnxruntime.InferenceSession(str(onnx_path)), compiled


@pytest.mark.parametrize(("size", "count"), [(80, 1), (80, 3), (100, 2)])
def test_onnx_and_openvino_agree_with_pytorch(exported, runtimes, size, count):
    images = photographs(size)[:count]
    expected = outputs(exported, images)
    session, compiled = runtimes
    names = [output.name for output in session.get_outputs()]
    by_onnx = dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
    assert_same(by_onnx, expected, 1e-4)
    assert np.array_equal(by_onnx["pred_label"], expected["pred_label"])
    assert_same({name: compiled(images.numpy())[name] for name in names}, expected, 1e-4)


def test_blank_images_are_anomalous_in_every_runtime(exported, runtimes):
    blank = torch.stack([torch.zeros(3, 80, 80), torch.ones(3, 80, 80), photographs(80)[0], photographs(80)[0]])
    blank[2, 1, 40, 40] = float("nan")
    blank[3, 0, 40, 40] = float("inf")
    session, compiled = runtimes
    by_openvino = compiled(blank.numpy())
    names = [output.name for output in session.get_outputs()]
    predictions = [
        outputs(exported, blank),
        dict(zip(names, session.run(None, {"input": blank.numpy()}), strict=True)),
        {name: by_openvino[name] for name in names},
    ]
    for prediction in predictions:
        np.testing.assert_array_equal(prediction["pred_score"], np.ones(4))
        assert prediction["pred_label"].all()
        assert np.isfinite(prediction["anomaly_map"]).all()


@pytest.mark.slow
def test_openvino_takes_batches_on_request(exported, tmp_path):
    path = exported.to_openvino(tmp_path, ov_kwargs={"input": [-1, 3, -1, -1]})
    compiled = openvino.Core().compile_model(path, "CPU")
    for size, count in ((80, 3), (100, 2)):
        images = photographs(size)[:count]
        output = compiled(images.numpy())
        assert_same({name: output[name] for name in ("pred_score", "anomaly_map")}, outputs(exported, images), 1e-4)


@pytest.mark.slow
def test_all_three_agree_on_photographs(shared, tmp_path):
    """The scene is fitted to rendered photographs of a brick model; queries are normal and defective."""
    if not (shared / "data" / "brickmad").is_dir():
        pytest.skip(f"the brick models are not in {shared / 'data'}")
    data = MAD(root=shared / "data" / "brickmad", category="car", image_size=96, num_workers=0)
    data.setup()
    train = data.train_dataloader().dataset
    items = [train[index] for index in range(0, len(train), 5)]
    images, intrinsics, poses = (
        torch.stack([torch.as_tensor(getattr(item, name)).float() for item in items])
        for name in ("image", "intrinsics", "camera_to_world")
    )
    cameras = Camera(poses, intrinsics, 96, 96)
    settings = FitSettings(steps=200, max_gaussians=2000, initial_gaussians=1000, sh_degree=1)
    scene = fit_gaussians(images, cameras, white_foreground(images), settings, progress=False).scene
    camera = Camera(torch.eye(4), cameras.median_intrinsics, 96, 96)
    # enough steps to converge: before, a last digit of the image changes the fourth digit of the score
    settings = DetectorSettings(views=60, size=64, starts=2, neighbours=2, steps=(4, 4, 3))
    nearby = NearbyViews(3)
    nearby.store_residuals(scene, images, cameras)
    detector = build_detector(
        scene, poses, camera, CalibratedComparator(), settings, white_background=True, nearby=nearby
    )
    detector.calibrate(images[1::7])
    exported = ExportedDetector(detector, None)
    path = exported.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(str(path))
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.name for output in session.get_outputs()]
    test = data.test_dataloader().dataset
    queries = torch.stack([torch.as_tensor(test[index].image) for index in (0, 20, 50)])
    for size in (96, 120):
        resized = torch.nn.functional.interpolate(queries, (size, size), mode="bilinear", antialias=True)
        expected = outputs(exported, resized)
        by_onnx = dict(zip(names, session.run(None, {"input": resized.numpy()}), strict=True))
        for actual in (by_onnx, {name: compiled(resized.numpy())[name] for name in names}):
            np.testing.assert_allclose(actual["pred_score"], expected["pred_score"], atol=1e-4)
            largest = expected["anomaly_map"].max()
            np.testing.assert_allclose(actual["anomaly_map"] / largest, expected["anomaly_map"] / largest, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "tolerance"), [(None, 1e-4), (CompressionType.FP16, 0.02), (CompressionType.INT8, 0.02)]
)
def test_compressed_openvino_stays_close(exported, tmp_path, compression, tolerance):
    images = photographs(80)
    path = exported.to_openvino(tmp_path, compression_type=compression)
    assert_same(one_by_one(path, images), outputs(exported, images), tolerance)


@pytest.mark.slow
def test_quantized_openvino_runs_only_the_network_in_eight_bits(exported, tmp_path):
    images = photographs(80)
    loader = [SimpleNamespace(image=images[:2]), SimpleNamespace(image=images[2:])]
    data = SimpleNamespace(setup=lambda stage: None, val_dataloader=lambda: loader)
    with pytest.raises(ValueError, match="INT8_PTQ measures activations on images"):
        exported.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ)
    path = exported.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=data)
    operations = openvino.Core().read_model(path).get_ops()
    quantized = {
        target.get_node().get_type_name()
        for node in operations
        if node.get_type_name() == "FakeQuantize"
        for target in node.output(0).get_target_inputs()
    }
    assert quantized
    assert quantized <= {"Convolution", "GroupConvolution"}
    networks = 2 * sum(isinstance(part, torch.nn.Conv2d) for part in exported.model.comparator.extractor.modules())
    convolutions = [node for node in operations if node.get_type_name() in ("Convolution", "GroupConvolution")]
    quantized_convolutions = [
        node for node in convolutions if node.input_value(0).get_node().get_type_name() == "FakeQuantize"
    ]
    assert len(quantized_convolutions) == networks < len(convolutions)
    assert_same(one_by_one(path, images), outputs(exported, images), 0.1)


def one_by_one(path: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Run an OpenVINO file image by image, as anomalib's inferencer does."""
    compiled = openvino.Core().compile_model(path, "CPU")
    assert compiled.input(0).get_partial_shape() == openvino.PartialShape([1, 3, -1, -1])
    predictions = [compiled(image[None].numpy()) for image in images]
    return {
        name: np.concatenate([prediction[name] for prediction in predictions]) for name in ("pred_score", "anomaly_map")
    }
