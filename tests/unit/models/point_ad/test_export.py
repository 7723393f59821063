# SPDX-License-Identifier: Apache-2.0
"""The graph of single views says in OpenVINO what the scorer says in PyTorch."""

import pytest
import torch
from anomalib.deploy import CompressionType

from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.models.point_ad.export import ViewGraph
from anomalib_pose.models.point_ad.scorer import ClipScorer
from anomalib_pose.models.point_ad.text import direction, ensemble_features

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture
def scorer(small) -> ClipScorer:
    return ClipScorer(small.vision)


@pytest.fixture
def graph(scorer, small) -> ViewGraph:
    return ViewGraph(scorer, direction(ensemble_features(small.text)))


def views(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(count))


def test_the_graph_is_the_scorer(graph, scorer):
    expected = scorer(views(3), None, graph.direction)
    found = graph(views(3))
    torch.testing.assert_close(found.pred_score, expected.scores)
    torch.testing.assert_close(found.anomaly_map, expected.maps)
    assert graph.image_size == 64
    assert not any(value.requires_grad for value in graph.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compression", "tolerance"), [(None, 1e-4), (CompressionType.FP16, 5e-3), (CompressionType.INT8, 5e-2)]
)
@pytest.mark.parametrize("count", [1, 3])
def test_openvino(graph, tmp_path, compression, tolerance, count):
    path = ExportedDetector(graph, None).to_openvino(
        tmp_path, input_size=(64, 64), compression_type=compression, ov_kwargs={"input": [count, 3, 64, 64]}
    )
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        expected = graph(views(count))
    found = compiled(views(count).numpy())
    for name in ("pred_score", "anomaly_map"):
        truth = getattr(expected, name)
        assert truth.std() > 0.01 or count == 1
        torch.testing.assert_close(torch.from_numpy(found[name]), truth, rtol=0, atol=tolerance)
