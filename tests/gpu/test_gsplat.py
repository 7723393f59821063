# SPDX-License-Identifier: Apache-2.0
"""The gsplat rasterizer against the definition and against the CPU rasterizer."""

import pytest
import torch

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.render import make_rasterizer
from anomalib_pose.render.cpu import CpuRasterizer
from anomalib_pose.render.gsplat_backend import GsplatRasterizer, gsplat_is_usable

from ..unit.render.splat_checks import SCENES, check  # noqa: TID252
from ..unit.render.splat_definition import make_camera, make_gaussians  # noqa: TID252

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gsplat_is_usable(), reason="needs a CUDA device and gsplat (extra 'cuda')"),
]


@pytest.fixture(scope="module")
def rasterizer():
    return GsplatRasterizer()


@pytest.mark.parametrize("name", SCENES)
def test_agrees_with_the_definition(rasterizer, name):
    check(rasterizer, *SCENES[name], device="cuda", tolerance=1e-3)


def test_agrees_with_the_cpu_rasterizer(rasterizer):
    gaussians = make_gaussians(5000, 1, sh_degree=3, size=0.04).to(torch.float32)
    eyes = ((0.0, 0.5, -3.0), (2.0, 1.0, -2.0))
    cameras = Camera.stack([make_camera(eye, width=203, height=150) for eye in eyes]).to(torch.float32)
    background = torch.tensor([0.2, 0.4, 0.6])
    cpu = CpuRasterizer()(gaussians, cameras, background)
    cuda = rasterizer(gaussians.to("cuda"), cameras.to("cuda"), background.to("cuda"))
    for name in ("rgb", "depth", "alpha"):
        expected, image = getattr(cpu, name), getattr(cuda, name).cpu()
        assert image.shape == expected.shape
        error = (image - expected).abs()
        assert error.mean() < 1e-4  # single pixels may fall on the other side of a threshold
        assert error.quantile(0.99) < 1e-3


def test_empty_view_is_background(rasterizer):
    background = torch.tensor([0.2, 0.4, 0.6], device="cuda", dtype=torch.float64, requires_grad=True)
    output = rasterizer(make_gaussians(0).to("cuda"), make_camera().to("cuda"), background)
    assert torch.equal(output.rgb, background.expand(32, 40, 3))
    output.rgb.sum().backward()
    assert background.grad.tolist() == [32 * 40] * 3


def test_cpu_tensors_are_refused(rasterizer):
    with pytest.raises(ValueError, match="make_rasterizer"):
        rasterizer(*SCENES["plain"])


def test_auto_selects_gsplat():
    assert isinstance(make_rasterizer("auto"), GsplatRasterizer)
