# SPDX-License-Identifier: Apache-2.0
"""The graph of single views says in OpenVINO what the scorer says in PyTorch."""

import pytest
import torch
from anomalib.deploy import CompressionType
from torch.nn.functional import interpolate, normalize

from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.models.point_ad.export import ViewGraph
from anomalib_pose.models.point_ad.scorer import ClipScorer

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture
def scorer(small) -> ClipScorer:
    return ClipScorer(small.vision)


@pytest.fixture
def graph(scorer) -> ViewGraph:
    # longer than random texts make it, so that scores differ
    return ViewGraph(scorer, 10 * normalize(torch.randn(48, generator=torch.Generator().manual_seed(0)), dim=0))


def views(count: int) -> torch.Tensor:
    """Smooth images of different brightness and colours."""
    g = torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, 4, 4, generator=g) * torch.rand(count, 3, 1, 1, generator=g)
    return interpolate(images, (64, 64), mode="bilinear")


def test_the_graph_is_the_scorer(graph, scorer):
    expected = scorer(views(3), None, graph.direction)
    found = graph(views(3))
    torch.testing.assert_close(found.pred_score, expected.scores)
    torch.testing.assert_close(found.anomaly_map, expected.maps)
    assert graph.image_size == 64
    assert not any(value.requires_grad for value in graph.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "count", "tolerance"),
    [(None, 1, 1e-4), (None, 9, 1e-4), (CompressionType.FP16, 9, 2e-3), (CompressionType.INT8, 9, 3e-2)],
)
def test_openvino(graph, tmp_path, compression, count, tolerance):
    path = ExportedDetector(graph, None).to_openvino(
        tmp_path, input_size=(64, 64), compression_type=compression, ov_kwargs={"input": [count, 3, 64, 64]}
    )
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = graph(views(count))
    found = compiled(views(count).numpy())
    for name in ("pred_score", "anomaly_map"):
        truth = getattr(expected, name)
        assert count == 1 or truth.std() > 0.05
        torch.testing.assert_close(torch.from_numpy(found[name]), truth, rtol=0, atol=tolerance)
