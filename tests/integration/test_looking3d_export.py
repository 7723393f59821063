# SPDX-License-Identifier: Apache-2.0
"""Exported Looking3D, with one constant shape, agrees with PyTorch in every runtime."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer

from anomalib_pose.models import Looking3D
from anomalib_pose.models.looking3d import reference

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


def photographs(count: int, seed: int) -> torch.Tensor:
    """Create objects on white. Most cells are background, whose keys are selected by their numbers."""
    g = torch.Generator().manual_seed(seed)
    images = torch.ones(count, 3, 256, 256)
    spots = torch.nn.functional.interpolate(torch.rand(count, 3, 12, 10, generator=g), size=(130, 120), mode="bicubic")
    images[..., 70:200, 50:170] = spots.clamp(0, 0.85)
    return images


@pytest.fixture(scope="module")
def model() -> Looking3D:
    patch = pytest.MonkeyPatch()
    shape = photographs(2, 1), torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(2))
    patch.setattr(reference, "load_reference", lambda path: shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield Looking3D(reference="views").eval()
    patch.undo()


def outputs(model: Looking3D, images: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {name: value.numpy() for name, value in model.feed_forward(box=True)(images)._asdict().items()}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float) -> None:
    assert {*actual} == {*expected} == {"pred_score", "pred_label", "anomaly_map", "pred_mask", "box"}
    assert expected["anomaly_map"].max() > 0.01
    for name, value in expected.items():
        if value.dtype == bool:
            assert np.array_equal(actual[name], value)
        else:
            np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance)


def test_the_exported_graph_agrees_with_the_model(model):
    images = photographs(2, 3)
    exported = outputs(model, images)
    with torch.no_grad():
        truth = model(images)
    np.testing.assert_allclose(exported["pred_score"], truth.pred_score, rtol=0, atol=1e-6)
    np.testing.assert_allclose(exported["anomaly_map"], truth.anomaly_map, rtol=0, atol=1e-6)


def test_other_sizes_and_full_quantization_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="photographs of 256 x 256 pixels, got input_size"):
        model.to_onnx(tmp_path, input_size=(128, 128))
    with pytest.raises(ValueError, match="activations need more than eight bits"):
        model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ)
    assert not list(tmp_path.rglob("model.*"))


@pytest.mark.slow
def test_onnx_agrees_with_pytorch(model, tmp_path):
    path = model.to_onnx(tmp_path, box=True)
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    for count in (1, 3):
        images = photographs(count, 4)
        actual = dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
        assert_same(actual, outputs(model, images), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "tolerance", "megabytes"),
    [(None, 1e-4, 130), (CompressionType.FP16, 5e-3, 65), (CompressionType.INT8, 3e-2, 40)],
)
def test_openvino_agrees_with_pytorch(model, tmp_path, compression, tolerance, megabytes):
    path = Path(model.to_openvino(tmp_path, compression_type=compression, onnx_kwargs={"box": True}))
    assert 0.8 * megabytes < path.with_suffix(".bin").stat().st_size / 1e6 < megabytes
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = photographs(1, 5)
    expected = outputs(model, image)
    actual = compiled(image.numpy())
    assert_same({name: actual[name] for name in expected}, expected, tolerance)
    assert [file.name for file in tmp_path.iterdir()] == ["weights"], "an export leaves only its result"


@pytest.mark.slow
def test_anomalibs_inferencers_agree_with_pytorch(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    image = photographs(1, 6)[0]
    expected = outputs(model, image[None])
    by_torch = TorchInferencer(model.to_torch(tmp_path), device="cpu").predict(image)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO's default is BF16 on some machines
    by_openvino = OpenVINOInferencer(Path(model.to_openvino(tmp_path)), "CPU", exact).predict(
        image.permute(1, 2, 0).numpy()
    )
    for result in (by_torch, by_openvino):
        np.testing.assert_allclose(np.asarray(result.pred_score).ravel(), expected["pred_score"], atol=1e-3)
        np.testing.assert_allclose(np.asarray(result.anomaly_map).squeeze(), expected["anomaly_map"][0, 0], atol=1e-3)
