# SPDX-License-Identifier: Apache-2.0
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.geometry.se3 import se3_exp
from anomalib_pose.render import gsplat_backend, make_rasterizer, splat_tiles, ssim_kernels, warmup
from anomalib_pose.render.cpu import CpuRasterizer
from anomalib_pose.render.gsplat_backend import GsplatRasterizer
from anomalib_pose.render.ssim import ssim
from anomalib_pose.render.types import Gaussians

from .splat_checks import NAMES, SCENES, check
from .splat_definition import define, make_camera, make_gaussians


@pytest.fixture(scope="module")
def rasterizer():
    return CpuRasterizer()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colors_without_gradients_equal_colors_with_gradients(rasterizer, degree):
    """``test_agrees_with_the_definition`` compares colors with gradients with associated Legendre functions."""
    gaussians = replace(make_gaussians(300, degree, sh_degree=3), sh_degree=degree)
    camera = make_camera((1.0, 2.0, 1.5), width=40, height=30)
    trainable = replace(gaussians, colors=gaussians.colors.clone().requires_grad_())
    with_gradients = rasterizer(trainable, camera).rgb
    assert with_gradients.requires_grad
    torch.testing.assert_close(rasterizer(gaussians, camera).rgb, with_gradients.detach(), atol=2e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(rasterizer(trainable, camera).rgb, with_gradients, atol=2e-6, rtol=1e-5)


def test_definition_has_correct_gradients():
    gaussians = make_gaussians(3, 3, sh_degree=2, size=0.3)
    camera = make_camera(width=5, height=4)
    tangent = torch.zeros(6, dtype=torch.float64)
    background = torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64)
    tensors = [getattr(gaussians, name).clone().requires_grad_() for name in NAMES]

    def images(*inputs):
        *values, tangent, background = inputs
        moved = camera.with_pose(camera.camera_to_world @ se3_exp(tangent))
        return define(Gaussians(*values, sh_degree=2), moved, background)[:3]

    assert torch.autograd.gradcheck(images, (*tensors, tangent.requires_grad_(), background.requires_grad_()))


@pytest.mark.parametrize("name", SCENES)
def test_agrees_with_the_definition(rasterizer, name):
    check(rasterizer, *SCENES[name])


def _loss_gradients(rasterizer, gaussians, cameras):
    tensors = [getattr(gaussians, name).clone().requires_grad_() for name in NAMES]
    pose = cameras.camera_to_world.clone().requires_grad_()
    output = rasterizer(Gaussians(*tensors, sh_degree=gaussians.sh_degree), cameras.with_pose(pose))
    loss = output.rgb.square().sum() + output.depth.sum() + output.alpha.square().sum()
    return [output.rgb.detach(), output.depth.detach(), *torch.autograd.grad(loss, [*tensors, pose])]


def _big_scene():
    return make_gaussians(3000, 8, sh_degree=1, size=0.05).to(torch.float32), make_camera(width=150, height=110).to(
        torch.float32
    )


def test_same_bits_on_any_number_of_threads(rasterizer, threads):
    gaussians, camera = _big_scene()
    results = []
    for count in (1, 2, 3, 2):
        threads(count)
        results.append(_loss_gradients(rasterizer, gaussians, camera))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_same_bits_from_several_python_threads(rasterizer):
    gaussians, camera = _big_scene()
    expected = _loss_gradients(rasterizer, gaussians, camera)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(_loss_gradients, rasterizer, gaussians, camera) for _ in range(8)]
        for job in jobs:
            assert all(torch.equal(a, b) for a, b in zip(expected, job.result(), strict=True))


class _Gradients(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        # The worker needs its own thread pool. torch.set_num_threads would start OpenMP, which does not survive a fork.
        with mock.patch.object(torch, "get_num_threads", return_value=2):
            return _loss_gradients(CpuRasterizer(), *_big_scene())[-1]


def test_a_forked_worker_computes_the_same_bits(rasterizer, threads):
    threads(2)
    expected = _loss_gradients(rasterizer, *_big_scene())[-1]  # the parent has used its threads before the fork
    loader = DataLoader(_Gradients(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    gradients = list(loader)
    assert len(gradients) == 4
    assert all(torch.equal(expected, gradient) for gradient in gradients)


def test_a_batch_of_cameras_renders_like_single_cameras(rasterizer):
    gaussians = make_gaussians(30, sh_degree=2)
    cameras = [make_camera(eye) for eye in ((0.0, 0.0, -3.0), (2.0, 1.0, -2.0), (0.0, 3.0, 0.1))]
    backgrounds = torch.rand(3, 3, dtype=torch.float64)
    batched = rasterizer(gaussians, Camera.stack(cameras), backgrounds)
    assert batched.rgb.shape == (3, 32, 40, 3)
    for index, camera in enumerate(cameras):
        single = rasterizer(gaussians, camera, backgrounds[index])
        assert torch.equal(batched.rgb[index], single.rgb)
        assert torch.equal(batched.depth[index], single.depth)
        assert torch.equal(batched.alpha[index], single.alpha)
    batch_of_one = rasterizer(gaussians, cameras[0].batched(), backgrounds[0])
    assert batch_of_one.alpha.shape == (1, 32, 40)
    shared = rasterizer(gaussians, Camera.stack(cameras), backgrounds[0])
    assert torch.equal(shared.rgb[0], batched.rgb[0])


@pytest.mark.parametrize("camera", [make_camera(), make_camera((0.0, 0.0, 30.0), target=(0.0, 0.0, 60.0))])
@pytest.mark.parametrize("count", [0, 5])
def test_empty_view_is_background_with_zero_gradients(rasterizer, camera, count):
    if count and camera.center[2] < 0:
        camera = camera.with_pose(
            camera.camera_to_world @ torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=torch.float64))
        )
    gaussians = make_gaussians(count)
    means = gaussians.means.clone().requires_grad_()
    background = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    output = rasterizer(replace(gaussians, means=means), camera, background)
    assert torch.equal(output.rgb, background.expand(32, 40, 3))
    assert not output.alpha.any()
    assert not output.depth.any()
    (output.rgb.sum() + output.depth.sum() + output.alpha.sum()).backward()
    assert not means.grad.any()


def test_extreme_values_stay_finite(rasterizer):
    gaussians, camera = make_gaussians(9), make_camera()
    huge = [1e-30, 1e-12, 1e3, 1e6, 1e9, 1e12, 1e18, 1e25, 1e36]
    gaussians = replace(gaussians, scales=torch.tensor(huge, dtype=torch.float64)[:, None].expand(9, 3).clone())
    assert torch.isfinite(rasterizer(gaussians, camera).rgb).all()
    mixed = replace(gaussians, scales=gaussians.scales.roll(3).flatten().roll(4).reshape(9, 3))
    for gradient in _loss_gradients(rasterizer, mixed, camera):
        assert torch.isfinite(gradient).all()
    means = torch.cat([gaussians.means[:6], torch.tensor([[1e20, 0, 0], [0, 0, 1e20], [torch.nan, 0, 0]]).double()])
    assert torch.isfinite(rasterizer(replace(make_gaussians(9), means=means), camera).rgb).all()


def test_images_are_equal_without_gradients_and_in_inference_mode(rasterizer):
    gaussians, camera = SCENES["plain"]
    expected = rasterizer(gaussians, camera).rgb
    with torch.inference_mode():
        assert torch.equal(rasterizer(gaussians, camera).rgb, expected)
    with torch.no_grad():
        assert torch.equal(rasterizer(gaussians.to(torch.float32), camera).rgb, expected.to(torch.float32))


def test_images_do_not_depend_on_the_default_dtype(rasterizer):
    gaussians, camera = SCENES["plain"]
    expected = rasterizer(gaussians, camera).rgb
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(CpuRasterizer()(gaussians, camera).rgb, expected)
    finally:
        torch.set_default_dtype(before)


def test_gradient_descent_recovers_the_pose(rasterizer):
    """Gradient descent on the tangent finds the pose of the image, so the sign convention is correct."""
    gaussians = make_gaussians(60, 9, size=0.1).to(torch.float32)
    camera = make_camera((0.2, -0.3, -1.7), focal=0.6).to(torch.float32)
    target = rasterizer(gaussians, camera).rgb
    wrong_pose = camera.camera_to_world @ se3_exp(torch.tensor([0.04, -0.03, 0.05, 0.02, -0.02, 0.03]))
    tangent = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.Adam([tangent], lr=4e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (rasterizer(gaussians, camera.with_pose(wrong_pose @ se3_exp(tangent))).rgb - target).square().mean()
        loss.backward()
        optimizer.step()
    assert (wrong_pose @ se3_exp(tangent.detach()) - camera.camera_to_world).abs().max() < 5e-3


def test_invalid_input_is_refused(rasterizer):
    gaussians, camera = SCENES["plain"]
    with pytest.raises(ValueError, match=r"background should be None, \(3,\) or \(1, 3\)"):
        rasterizer(gaussians, camera, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="batch shape"):
        rasterizer(gaussians, camera.with_pose(camera.camera_to_world.expand(2, 2, 4, 4)))
    with pytest.raises(ValueError, match="meta"):
        rasterizer(gaussians.to("meta"), camera)
    with pytest.raises(ValueError, match="opacities should have shape"):
        replace(gaussians, opacities=gaussians.opacities[:3])
    with pytest.raises(ValueError, match="K >= 4"):
        replace(gaussians, colors=torch.zeros(40, 1, 3), sh_degree=1)


def test_warmup_compiles_all_kernels(rasterizer):
    warmup()
    assert ssim_kernels.similarity_backward.signatures
    assert splat_tiles.composite_backward.signatures
    counts = len(splat_tiles.composite.signatures), len(ssim_kernels.similarity.signatures)
    with torch.inference_mode():
        rasterizer(*SCENES["plain"])
        ssim(torch.zeros(5, 5, 3, dtype=torch.float64), torch.zeros(5, 5, 3, dtype=torch.float64))
    assert counts == (len(splat_tiles.composite.signatures), len(ssim_kernels.similarity.signatures))


def test_make_rasterizer_selects_the_backend_by_name(monkeypatch):
    with pytest.raises(ValueError, match="'cpu', 'gsplat'"):
        make_rasterizer("metal")
    assert isinstance(make_rasterizer("cpu"), CpuRasterizer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(make_rasterizer("auto"), CpuRasterizer)


class _FakeRasterization:
    """Replacement of gsplat's function that renders on the CPU, with gsplat's names, shapes and conventions."""

    def __call__(self, *, viewmats, Ks, width, height, colors, sh_degree, **options):
        tensors = {name: options.pop(name) for name in ("means", "quats", "scales", "opacities")}
        assert options == {
            "near_plane": 0.01,
            "eps2d": 0.3,
            "packed": False,
            "render_mode": "RGB+ED",
            "rasterize_mode": "classic",
        }
        assert colors.dtype == viewmats.dtype == Ks.dtype == torch.float32
        cameras = Camera(torch.linalg.inv(viewmats), Ks, width, height)
        output = CpuRasterizer()(Gaussians(**tensors, colors=colors, sh_degree=sh_degree), cameras)
        return torch.cat([output.rgb, output.depth[..., None]], -1), output.alpha[..., None], {}


@pytest.mark.parametrize("name", ["plain", "sh2", "one row"])
def test_gsplat_gets_its_own_arguments_and_conventions(monkeypatch, name):
    monkeypatch.setattr(gsplat_backend, "_rasterization", _FakeRasterization)
    monkeypatch.setattr(gsplat_backend, "check_device", lambda *_: None)
    check(GsplatRasterizer(), *SCENES[name])
    output = GsplatRasterizer()(make_gaussians(0), Camera.stack([make_camera()] * 2))
    assert output.rgb.shape == (2, 32, 40, 3)
    assert not output.depth.any()


def test_gsplat_rasterizer_names_the_missing_dependency(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    with pytest.raises(ImportError, match=r"anomalib-pose\[cuda\]"):
        GsplatRasterizer()
    module = type(torch)("gsplat")
    module.rasterization = lambda **_: None
    monkeypatch.setitem(sys.modules, "gsplat", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="CUDA device"):
        GsplatRasterizer()
    for name in ("gsplat.cuda", "gsplat.cuda._backend"):
        monkeypatch.setitem(sys.modules, name, type(torch)(name))
    sys.modules["gsplat.cuda._backend"]._C = None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="nvcc"):
        GsplatRasterizer()
