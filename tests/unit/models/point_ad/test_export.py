# SPDX-License-Identifier: Apache-2.0
"""Exported graphs of single images agree with PyTorch; the host combines their scores to scores of clouds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.deploy import CompressionType, OpenVINOInferencer, TorchInferencer
from torch.nn.functional import interpolate, normalize

from anomalib_pose.data import CloudBatch
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings
from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.models import PointAD
from anomalib_pose.models.point_ad import PointADInferencer
from anomalib_pose.models.point_ad.checkpoint import write_prompts
from anomalib_pose.models.point_ad.export import ExportableImageScorer
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipScorer
from anomalib_pose.scene.ply_table import read_ply_vertices

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture
def scorer(small) -> ClipScorer:
    return ClipScorer(small.vision)


@pytest.fixture
def graph(scorer) -> ExportableImageScorer:
    # longer than the direction of random texts, so that scores differ
    return ExportableImageScorer(
        scorer, 10 * normalize(torch.randn(48, generator=torch.Generator().manual_seed(0)), dim=0)
    )


def views(count: int) -> torch.Tensor:
    """Create smooth images of different brightness and colors."""
    g = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, 4, 4, generator=g) * torch.rand(count, 3, 1, 1, generator=g)
    return interpolate(images, (64, 64), mode="bilinear")


def test_the_graph_agrees_with_the_scorer(graph, scorer):
    expected = scorer(views(3), None, graph.direction)
    output = graph(views(3))
    torch.testing.assert_close(output.pred_score, expected.view_scores)
    torch.testing.assert_close(output.anomaly_map, expected.view_maps)
    assert graph.image_size == 64
    assert not any(value.requires_grad for value in graph.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "count", "tolerance"),
    [(None, 1, 1e-4), (None, 9, 1e-4), (CompressionType.FP16, 9, 2e-3), (CompressionType.INT8, 9, 3e-2)],
)
def test_openvino_agrees_with_pytorch(graph, tmp_path, compression, count, tolerance):
    path = ExportedDetector(graph, None).to_openvino(
        tmp_path, input_size=(64, 64), compression_type=compression, ov_kwargs={"input": [count, 3, 64, 64]}
    )
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = graph(views(count))
    output = compiled(views(count).numpy())
    for name in ("pred_score", "anomaly_map"):
        truth = getattr(expected, name)
        assert count == 1 or truth.std() > 0.05
        torch.testing.assert_close(torch.from_numpy(output[name]), truth, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def learned(make_clip, small, tmp_path_factory) -> PointAD:
    """Create a model with random prompts; the abnormal one is scaled, so that scores differ."""
    prompts = PromptLearner(small.text, 4, 2, 2)
    prompts.abnormal.data *= 100
    path = write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.pt", prompts, small.text)
    model = make_clip(prompt_path=str(path), smoothing=2.0, top_fraction=0.01, visualizer=False)
    model.post_processor._image_threshold.fill_(0.45)
    return model


@pytest.fixture(scope="module")
def ring(clouds_root) -> tuple[Path, Path]:
    """Cloud and photograph of a defective ring."""
    cloud = next(
        path for path in sorted((clouds_root / "ring" / "test").glob("*/xyz/*.tiff")) if "good" not in str(path)
    )
    return cloud, cloud.parents[1] / "rgb" / f"{cloud.stem}.png"


SETTINGS = RenderSettings.of_views(5, 64)


def expected_of(model: PointAD, make_clouds, cloud: Path, **changes) -> CloudBatch:
    data = make_clouds(**{"size": 64, **changes})
    data.setup()
    (batch,) = [part for part in data.test_dataloader() if Path(part.image_path[0]).parents[1] == cloud.parents[1]]
    with torch.no_grad():
        return model._step(batch)


def assert_same(prediction, batch: CloudBatch, tolerance: float) -> None:
    assert prediction.score == pytest.approx(float(batch.object_score[0]), abs=tolerance)
    torch.testing.assert_close(prediction.point_map, batch.point_scores[0], rtol=0, atol=tolerance)
    assert batch.point_scores.std() > 10 * tolerance
    assert torch.equal(prediction.valid, batch.valid[0])
    assert torch.equal(prediction.points, batch.points[0])
    assert prediction.defective == (prediction.score > 0.45)


@pytest.mark.parametrize("images", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_inferencer_scores_clouds_as_the_model(learned, make_clouds, ring, tmp_path, images):
    # six images in batches of one, or of four: the last batch is filled up
    path = learned.to_openvino(tmp_path, onnx_kwargs={"images": images})
    assert {file.name for file in path.parent.iterdir()} == {"model.xml", "model.bin", "model.json"}
    prediction = PointADInferencer(path, SETTINGS).predict(*ring)
    assert_same(prediction, expected_of(learned, make_clouds, ring[0]), 1e-4)
    prediction.write(tmp_path / "scored.ply")
    np.testing.assert_array_equal(
        read_ply_vertices(tmp_path / "scored.ply")["score"], prediction.point_map[prediction.valid].numpy()
    )


@pytest.mark.slow
def test_the_inferencer_reads_onnx_and_resizes_views(learned, make_clouds, ring, tmp_path):
    path = learned.to_onnx(tmp_path)
    prediction = PointADInferencer(path, RenderSettings.of_views(5, 80)).predict(*ring)
    assert_same(prediction, expected_of(learned, make_clouds, ring[0], size=80), 1e-4)
    without = PointADInferencer(path, SETTINGS).predict(ring[0])
    assert abs(without.score - PointADInferencer(path, SETTINGS).predict(*ring).score) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "tolerance"), [("FP16", 5e-3), ("INT8", 5e-2)])
def test_compressed_weights_score_nearly_the_same(learned, make_clouds, ring, tmp_path, compression, tolerance):
    path = learned.to_openvino(tmp_path, compression_type=CompressionType[compression])
    prediction = PointADInferencer(path, SETTINGS).predict(*ring)
    truth = expected_of(learned, make_clouds, ring[0])
    assert prediction.score == pytest.approx(float(truth.object_score[0]), abs=tolerance)
    torch.testing.assert_close(prediction.point_map, truth.point_scores[0], rtol=0, atol=tolerance)


@pytest.mark.slow
def test_anomalibs_inferencers_take_single_images(learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    image = views(1)
    openvino_path, torch_path = learned.to_openvino(tmp_path), learned.to_torch(tmp_path)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # OpenVINO's default is BF16 on some machines
    by_openvino = OpenVINOInferencer(openvino_path, "CPU", exact).predict(image[0].permute(1, 2, 0).numpy())
    by_torch = TorchInferencer(torch_path, device="cpu").predict(image[0])
    for result in (by_openvino, by_torch):
        np.testing.assert_allclose(np.ravel(result.pred_score), learned(image).pred_score, atol=1e-4)


def test_impossible_exports_are_refused(learned, make_clip, tmp_path):
    with pytest.raises(ValueError, match="images of 64 x 64 pixels, got input_size"):
        learned.to_onnx(tmp_path, input_size=(32, 32))
    with pytest.raises(ValueError, match="activations need more than eight bits"):
        learned.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ)
    with pytest.raises(ValueError, match="images should be 1 or more"):
        learned.to_openvino(tmp_path, onnx_kwargs={"images": 0})
    with pytest.raises(ValueError, match="not learned yet"):
        make_clip().to_onnx(tmp_path)
    assert not list(tmp_path.rglob("model.*"))


def test_the_inferencer_checks_its_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no file"):
        PointADInferencer(tmp_path / "model.xml")
    (tmp_path / "model.xml").touch()
    with pytest.raises(FileNotFoundError, match=r"Expected .*model\.json beside"):
        PointADInferencer(tmp_path / "model.xml")
    (tmp_path / "model.json").write_text('{"smoothing": 4.0}')
    with pytest.raises(ValueError, match="should hold smoothing, top_fraction, fuse_rgb, threshold"):
        PointADInferencer(tmp_path / "model.xml")
