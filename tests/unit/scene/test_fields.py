# SPDX-License-Identifier: Apache-2.0
"""Fits of radiance fields: quality, interruption, checkpoints."""

import logging
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.scene import (
    MlpFitSettings,
    MlpScene,
    PixelScene,
    VoxelFitSettings,
    VoxelScene,
    fit_mlp,
    fit_voxels,
    mlp_fit,
    voxel_fit,
    white_foreground,
)
from anomalib_pose.scene.hull import object_box
from anomalib_pose.scene.mlp_scene import RadianceMlp, _resample, encode
from sample_scenes import make_ring, make_toy

QUICK = VoxelFitSettings(steps=160, rays=2048)
BRIEF = MlpFitSettings(steps=3, rays=64, samples=8, fine_samples=8, center_steps=1)


@pytest.fixture(scope="module")
def posed():
    """Render the toy: images, cameras and rendering that a fit should reproduce."""
    truth = make_toy()
    cameras = Camera.from_fov(view_sphere(40, 3.0), 0.6, 48, 48)
    output = truth.render(cameras, torch.ones(3))
    return output.rgb.permute(0, 3, 1, 2).clamp(0, 1), cameras, output


def masks(output) -> torch.Tensor:
    return (output.alpha > 0.01).float()


@pytest.fixture(scope="module")
def fitted(posed):
    images, cameras, output = posed
    return fit_voxels(images, cameras, masks(output), QUICK, held_out=(3, 11), progress=False)


def test_voxels_reproduce_the_toy(posed, fitted):
    _, cameras, output = posed
    scene, psnr = fitted
    assert psnr > 26
    rendering = scene.render(cameras[3], torch.zeros(3))
    assert (rendering.alpha - output.alpha[3]).abs().mean() < 0.03
    opaque = output.alpha[3] > 0.99
    assert (rendering.depth - output.depth[3])[opaque].abs().median() < 0.06  # two cells
    assert (scene.center - make_toy().center).norm() < 0.25  # of a body 1.6 long
    assert scene.extent == pytest.approx(make_toy().extent, rel=0.2)


@pytest.mark.parametrize("hole_in_mask", [True, False])
def test_a_hole_stays_empty(hole_in_mask):
    cameras = Camera.from_fov(view_sphere(60, 3.0), 0.75, 48, 48)
    output = make_ring().render(cameras, torch.ones(3))
    images = output.rgb.permute(0, 3, 1, 2).clamp(0, 1)
    open_masks = white_foreground(images)
    closed = torch.stack([torch.from_numpy(ndimage.binary_fill_holes(mask)) for mask in open_masks.numpy()]).float()
    hole = (closed > 0) & (torch.nn.functional.max_pool2d((output.alpha > 0.01).float(), 3, 1, 1) == 0)
    assert hole.sum() > 1000
    assert not open_masks[hole].any()
    # Closed masks leave open whether white pixels show the object or the background.
    foreground = open_masks if hole_in_mask else closed
    scene, _ = fit_voxels(images, cameras, foreground, VoxelFitSettings(steps=400, rays=2048), progress=False)
    rendering = scene.render(cameras)
    assert rendering.alpha[hole].mean() < (0.02 if hole_in_mask else 0.1)
    assert rendering.alpha[output.alpha > 0.99].mean() > 0.9


def test_the_fit_does_not_depend_on_the_scene_unit(posed):
    """The toy is a hundred times as large and as far away."""
    images, cameras, output = posed
    poses = cameras.camera_to_world.clone()
    poses[:, :3, 3] = 100 * poses[:, :3, 3] + torch.tensor([500.0, -200, 50])
    moved = Camera(poses, cameras.K, cameras.width, cameras.height)
    _, psnr = fit_voxels(images, moved, masks(output), QUICK, held_out=(3, 11), progress=False)
    assert psnr > 26


@pytest.mark.slow
def test_voxels_reproduce_the_toy_without_masks(posed):
    _, cameras, _ = posed
    black = make_toy().render(cameras).rgb.permute(0, 3, 1, 2).clamp(0, 1)
    _, psnr = fit_voxels(black, cameras, None, QUICK, held_out=(3, 11), progress=False)
    assert psnr > 22


def test_single_pixels_equal_the_pixels_of_the_image(posed, fitted):
    _, cameras, _ = posed
    scene = fitted[0]
    assert isinstance(scene, PixelScene)
    assert not isinstance(make_toy(), PixelScene)
    pixels = torch.tensor([5, 1000, 1200, 2000])
    background = torch.tensor([0.2, 0.4, 0.6])
    whole = scene.render(cameras[0], background).rgb.reshape(-1, 3)
    torch.testing.assert_close(scene.render_pixels(cameras[0], pixels, background), whole[pixels])


def test_a_reloaded_voxel_scene_renders_the_same(posed, fitted, tmp_path):
    _, cameras, _ = posed
    torch.save(fitted[0].state_dict(), tmp_path / "scene.pt")
    loaded = VoxelScene()
    loaded.load_state_dict(torch.load(tmp_path / "scene.pt", weights_only=True))
    reloaded, original = loaded.render(cameras[1]), fitted[0].render(cameras[1])
    assert torch.equal(reloaded.rgb, original.rgb)
    assert torch.equal(reloaded.depth, original.depth)


@pytest.mark.parametrize(
    ("fit", "fitter", "settings"),
    [
        (fit_voxels, voxel_fit._VoxelFitter, VoxelFitSettings(steps=24, rays=256)),
        (fit_mlp, mlp_fit._MlpFitter, MlpFitSettings(steps=6, rays=32, samples=8, fine_samples=8)),
    ],
)
def test_an_interrupted_fit_continues_to_the_same_scene(fit, fitter, settings, posed, tmp_path, monkeypatch, caplog):
    images, cameras, output = posed
    whole, _ = fit(images, cameras, masks(output), settings, progress=False)
    step, calls = fitter.one_step, []
    stop_at = settings.steps // 2 + 1

    def interrupted(self):
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(fitter, "one_step", interrupted)
    path = tmp_path / "fit.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(images, cameras, masks(output), settings, checkpoint=path, progress=False)
    with caplog.at_level(logging.INFO):
        resumed, _ = fit(images, cameras, masks(output), settings, checkpoint=path, progress=False)
    assert f"from step {stop_at - 1}" in caplog.text
    assert not path.exists()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.slow
def test_a_network_improves_and_reloads_from_a_checkpoint(posed):
    images, cameras, output = posed
    mask = masks(output)
    _, before = fit_mlp(images, cameras, mask, BRIEF, held_out=(3,), progress=False)
    longer = MlpFitSettings(**{**vars(BRIEF), "steps": 60, "rays": 256})
    scene, after = fit_mlp(images, cameras, mask, longer, held_out=(3,), progress=False)
    assert after > before + 1
    loaded = MlpScene(8, 8)
    with pytest.raises(ValueError, match="has not been fitted"):
        loaded.render(cameras[0])
    loaded.load_state_dict(scene.state_dict())
    assert torch.equal(loaded.render(cameras[1]).rgb, scene.render(cameras[1]).rgb)


def test_the_network_has_nerfs_number_of_parameters():
    assert sum(parameter.numel() for parameter in RadianceMlp().parameters()) == 595_844


def test_the_encoding_equals_the_papers_formula():
    values = torch.tensor([[0.3, -0.7, 0.1]])
    encoded = encode(values, 3)[0].tolist()
    expected = [0.3, -0.7, 0.1]
    for function in (math.sin, math.cos):
        expected += [function(2**band * math.pi * value) for band in range(3) for value in (0.3, -0.7, 0.1)]
    np.testing.assert_allclose(encoded, expected, atol=1e-5)


def test_fine_samples_follow_the_coarse_weights():
    fraction = ((torch.arange(16) + 0.5) / 16).expand(1, -1)
    weights = torch.zeros(1, 16)
    weights[0, 4], weights[0, 11] = 0.75, 0.25
    samples = _resample(fraction, weights, 4000, torch.Generator().manual_seed(0))[0]
    near, far = (samples - fraction[0, 4]).abs() <= 1 / 32, (samples - fraction[0, 11]).abs() <= 1 / 32
    assert float((near | far).float().mean()) > 0.99
    assert float(near.float().mean()) == pytest.approx(0.75, abs=0.03)


def test_the_box_encloses_the_object_tightly(posed):
    _, cameras, output = posed
    _, lower, upper = object_box(cameras, masks(output))
    means = make_toy().means
    assert bool((means.amin(0) > lower).all() & (means.amax(0) < upper).all())
    assert bool((upper - lower < 1.35 * (means.amax(0) - means.amin(0)) + 0.1).all())


def test_wrong_input_is_refused(posed):
    images, cameras, _ = posed
    with pytest.raises(ValueError, match="At least two views"):
        fit_voxels(images[:1], cameras[:1], progress=False)
    with pytest.raises(ValueError, match="steps, rays >= 1"):
        VoxelFitSettings(steps=0)
    with pytest.raises(ValueError, match="samples >= 3"):
        MlpFitSettings(samples=2)
    with pytest.raises(ValueError, match="holds no voxels"):
        VoxelScene().render(cameras)
    with pytest.raises(ValueError, match="finite values for the 8 occupied"):
        VoxelScene().set_voxels(torch.zeros(3), 1.0, torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(7, 4))
