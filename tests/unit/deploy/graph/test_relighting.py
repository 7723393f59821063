# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from anomalib_pose.compare import relight_reference
from anomalib_pose.compare.lighting.robust_weights import biweight
from anomalib_pose.deploy.graph import relighting
from anomalib_pose.deploy.graph.linear_solver import solve_positive
from anomalib_pose.deploy.graph.relighting import _median

SIZE = 72
AXIS = (torch.arange(SIZE) + 0.5) / SIZE * 2.4 - 1.2
Y, X = torch.meshgrid(AXIS, AXIS, indexing="ij")
ALPHA = ((1 - X.square() - Y.square()) * 8).clamp(0, 1)
NORMALS = torch.stack([X, Y, -(1 - X.square() - Y.square()).clamp(min=0).sqrt()], -1)
POINTS = NORMALS + torch.tensor([0.0, 0.0, 4.0])


def balls() -> tuple[torch.Tensor, ...]:
    """Two balls with a texture and a stain, in lamps of different colors, their renderings, alpha and points."""
    generator = torch.Generator().manual_seed(0)
    reference = (
        (0.3 + 0.4 * torch.rand(2, 3, 9, 9, generator=generator)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    )
    lamps = torch.nn.functional.normalize(torch.tensor([[-1.0, 0.5, -1.0], [0.3, -1.0, -0.4]]), dim=1)
    shade = (0.5 + 0.5 * (NORMALS @ lamps.T)).permute(2, 0, 1)[:, None]
    query = reference * shade * torch.tensor([[1.0, 0.8, 0.5], [0.7, 0.9, 1.0]])[:, :, None, None]
    query[:, :, 30:40, 22:34] = torch.tensor([0.1, 0.9, 0.2])[:, None, None]
    white = ALPHA == 0
    reference[..., white] = query[..., white] = 1
    return query, reference, ALPHA.expand(2, -1, -1), POINTS.expand(2, -1, -1, -1)


def test_the_graph_relights_as_its_twin():
    query, reference, alpha, points = balls()
    expected = relight_reference(query, reference, alpha, points)
    assert (expected - reference).abs().mean() > 0.05
    torch.testing.assert_close(
        relighting.relight_reference(query, reference, alpha, points), expected, atol=1e-4, rtol=0
    )


def test_runtimes_agree_with_the_graph(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")

    class Relighting(torch.nn.Module):
        def forward(self, *windows: torch.Tensor) -> torch.Tensor:
            return relighting.relight_reference(*windows)

    path, windows, names = tmp_path / "relighting.onnx", balls(), ("query", "reference", "alpha", "points")
    options = {"opset_version": 18, "optimize": False, "input_names": names, "output_names": ["relighted"]}
    torch.onnx.export(Relighting().eval(), windows, path, dynamo=True, verbose=False, **options)
    expected = relighting.relight_reference(*windows).numpy()
    inputs = {name: window.numpy() for name, window in zip(names, windows, strict=True)}
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for relighted in (onnxruntime.InferenceSession(path).run(None, inputs)[0], compiled(inputs)["relighted"]):
        np.testing.assert_allclose(relighted, expected, atol=5e-5)


def test_an_object_of_a_few_pixels_stays_unchanged():
    query, reference, _, points = balls()
    alpha = torch.zeros(2, SIZE, SIZE)
    alpha[0, :5, :5] = 1
    assert torch.equal(relighting.relight_reference(query, reference, alpha, points), reference)


def test_the_median_is_of_the_values_inside():
    generator = torch.Generator().manual_seed(0)
    values, inside = torch.rand(3, 501, generator=generator), torch.ones(3, 501)
    inside[1, ::3], inside[2, 10:] = 0, 0
    expected = torch.stack([row[mask > 0].median() for row, mask in zip(values, inside, strict=True)])
    torch.testing.assert_close(_median(values, inside, inside.sum(1)), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [6, 9])
def test_systems_are_solved_as_by_torch(size):
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(4, size, 2 * size, generator=generator, dtype=torch.float64)
    matrix, right = roots @ roots.mT, torch.randn(4, size, generator=generator, dtype=torch.float64)
    damping = torch.tensor([0.0, 1e-3, 0.1, 10.0], dtype=torch.float64)
    damped = matrix + damping[:, None, None] * torch.diag_embed(matrix.diagonal(dim1=1, dim2=2))
    expected = torch.linalg.solve(damped, right)
    torch.testing.assert_close(solve_positive(matrix, right, damping), expected, rtol=1e-8, atol=1e-10)


def test_biweight_is_tukeys_with_a_floor():
    residual = torch.rand(101, generator=torch.Generator().manual_seed(0))
    scale = 4.685 * 1.4826 * residual.median() + 0.01
    torch.testing.assert_close(biweight(residual), (1 - (residual / scale).clamp(max=1) ** 2) ** 2)
