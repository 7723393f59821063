# SPDX-License-Identifier: Apache-2.0
import logging
import signal
from collections.abc import Iterator

import pytest
import torch

from anomalib_pose.geometry import Camera, view_sphere
from anomalib_pose.render.reflectance import reflectance, reflectance_of_color
from anomalib_pose.scene import FitSettings, GaussianScene, fit_gaussians
from anomalib_pose.scene import fit as fit_module
from anomalib_pose.scene.training_views import make_training_views
from sample_scenes import make_toy

QUICK = FitSettings(steps=250, max_gaussians=400, initial_gaussians=300, half_size_share=0.2)


@pytest.fixture(scope="module")
def posed():
    """Render the toy: images, cameras and alpha that a fit should reproduce."""
    truth = make_toy()
    cameras = Camera.from_fov(view_sphere(40, 3.0), 0.6, 48, 48)
    output = truth.render(cameras, torch.ones(3))
    return output.rgb.permute(0, 3, 1, 2).clamp(0, 1), cameras, output.alpha


def test_a_fit_reproduces_the_toy(posed):
    images, cameras, alpha = posed
    start = fit_gaussians(images, cameras, (alpha > 0.01).float(), FitSettings(**{**vars(QUICK), "steps": 1}),
                          held_out=(3, 11), progress=False)  # fmt: skip
    result = fit_gaussians(images, cameras, (alpha > 0.01).float(), QUICK, held_out=(3, 11), progress=False)
    assert result.psnr > 27
    assert result.psnr > start.psnr + 8
    output = result.scene.render(cameras[3], torch.zeros(3))
    assert (output.alpha - alpha[3]).abs().mean() < 0.03  # the alpha is right, not only the colors over white


def test_reflectance_is_fitted_together_with_the_colors(posed):
    images, cameras, alpha = posed
    settings = FitSettings(**{**vars(QUICK), "reflectance": True})
    result = fit_gaussians(images, cameras, (alpha > 0.01).float(), settings, held_out=(3, 11), progress=False)
    expected = reflectance(images)[[3, 11]]
    background = reflectance_of_color(torch.ones(3))
    rendered = result.scene.render_reflectance(cameras[[3, 11]], background).rgb.permute(0, 3, 1, 2)
    inside = (alpha[[3, 11]] > 0.9)[:, None].expand_as(expected)
    error = (rendered - expected)[inside].square().mean()
    assert error < 0.2 * (expected - background[:, None, None])[inside].square().mean()
    assert error < 0.006  # 22 dB
    assert result.psnr > 27


def test_equal_seeds_give_equal_scenes(posed):
    images, cameras, alpha = posed
    settings = FitSettings(steps=15, max_gaussians=120, initial_gaussians=100)
    first, second = (fit_gaussians(images, cameras, alpha, settings, progress=False).scene for _ in range(2))
    for name, tensor in first.named_buffers():
        torch.testing.assert_close(dict(second.named_buffers())[name], tensor, rtol=0, atol=0)


def test_an_interrupted_fit_continues_to_the_same_scene(posed, tmp_path, monkeypatch, caplog):
    images, cameras, alpha = posed
    settings = FitSettings(steps=30, max_gaussians=120, initial_gaussians=100)
    whole = fit_gaussians(images, cameras, alpha, settings, progress=False).scene
    one_step, calls = fit_module._Fitter.one_step, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 13:
            raise KeyboardInterrupt
        one_step(self)

    monkeypatch.setattr(fit_module._Fitter, "one_step", interrupted)
    path = tmp_path / "fit" / "car.pt"
    with pytest.raises(KeyboardInterrupt):
        fit_gaussians(images, cameras, alpha, settings, checkpoint=path, progress=False)
    assert path.is_file()
    with caplog.at_level(logging.INFO):
        resumed = fit_gaussians(images, cameras, alpha, settings, checkpoint=path, progress=False).scene
    assert "from step 12" in caplog.text
    assert len(calls) == 13 + 18
    assert not path.exists()
    for name, tensor in whole.named_buffers():
        torch.testing.assert_close(dict(resumed.named_buffers())[name], tensor, rtol=0, atol=0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler, which a shell takes away from a process in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_within_a_step_waits_for_its_end(posed, tmp_path, monkeypatch):
    """Half a step cannot be saved: the continued fit would differ."""
    images, cameras, alpha = posed
    settings = FitSettings(steps=12, max_gaussians=120, initial_gaussians=100)
    whole = fit_gaussians(images, cameras, alpha, settings, progress=False).scene
    one_step, ended = fit_module._Fitter.one_step, []
    handler = signal.getsignal(signal.SIGINT)

    def interrupted(self):
        if len(ended) == 5:
            signal.raise_signal(signal.SIGINT)
        one_step(self)
        ended.append(self.step)

    path = tmp_path / "fit.pt"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit_module._Fitter, "one_step", interrupted)
        fit_gaussians(images, cameras, alpha, settings, checkpoint=path, progress=False)
    assert len(ended) == 6
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(path, weights_only=True)["step"] == 6
    resumed = fit_gaussians(images, cameras, alpha, settings, checkpoint=path, progress=False).scene
    for name, tensor in whole.named_buffers():
        torch.testing.assert_close(dict(resumed.named_buffers())[name], tensor, rtol=0, atol=0)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interruption_ends_a_step_at_once_and_saves_nothing(posed, tmp_path, monkeypatch):
    images, cameras, alpha = posed

    def interrupted(self):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        pytest.fail("the step goes on")

    monkeypatch.setattr(fit_module._Fitter, "one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_gaussians(images, cameras, alpha, QUICK, checkpoint=tmp_path / "fit.pt", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_fit_is_refused(posed, tmp_path):
    images, cameras, _ = posed
    torch.save({"fingerprint": "other"}, tmp_path / "fit.pt")
    with pytest.raises(ValueError, match="other images or with other settings"):
        fit_gaussians(images, cameras, settings=QUICK, checkpoint=tmp_path / "fit.pt", progress=False)


def test_paper_recipe_runs_and_improves(posed):
    images, cameras, alpha = posed
    settings = FitSettings(**{**vars(FitSettings.paper(steps=60)), "initial_gaussians": 300})
    result = fit_gaussians(images, cameras, alpha, settings, held_out=(3,), progress=False)
    first = fit_gaussians(images, cameras, alpha, FitSettings(**{**vars(settings), "steps": 1}), held_out=(3,),
                          progress=False)  # fmt: skip
    assert result.psnr > first.psnr + 2


def test_without_masks_the_background_belongs_to_the_scene(posed):
    images, cameras, _ = posed
    result = fit_gaussians(images, cameras, None, FitSettings(steps=10, max_gaussians=60, initial_gaussians=50),
                           progress=False)  # fmt: skip
    assert isinstance(result.scene, GaussianScene)
    assert result.psnr != result.psnr


def test_target_over_another_background_is_exact_where_coverage_is_known(posed):
    images, cameras, alpha = posed
    view = make_training_views(images[:1], cameras[:1], (alpha[:1] > 0.5).float())[0]
    background = torch.tensor([0.1, 0.6, 0.3])
    target = view.target(background, torch.zeros(48, 48))
    outside = (view.band == 0) & (view.foreground == 0)
    torch.testing.assert_close(target[outside], view.image[outside] + background - 1)
    inside = (view.band == 0) & (view.foreground == 1)
    torch.testing.assert_close(target[inside], view.image[inside])


def test_crop_renders_the_same_pixels(posed):
    images, cameras, alpha = posed
    view = make_training_views(images[:1], cameras[:1], (alpha[:1] > 0.5).float())[0]
    crop = view.cropped(2)
    assert crop.camera.width < view.camera.width
    truth = make_toy()
    whole, part = truth.render(view.camera).rgb, truth.render(crop.camera).rgb
    left, top = (view.camera.K - crop.camera.K)[[0, 1], 2].int().tolist()
    torch.testing.assert_close(part, whole[top : top + crop.camera.height, left : left + crop.camera.width],
                               atol=2e-3, rtol=0)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": slice(0, 3)}, "need as many cameras"),
        ({"held_out": tuple(range(39))}, "At least two views"),
        ({"nan": True}, "finite"),
    ],
)
def test_wrong_input_is_refused(posed, change, message):
    images, cameras, _ = posed
    if "nan" in change:
        poses = cameras.camera_to_world.clone()
        poses[2, 0, 3] = float("nan")
        cameras = cameras.with_pose(poses)
    cameras = cameras[change["cameras"]] if "cameras" in change else cameras
    with pytest.raises(ValueError, match=message):
        fit_gaussians(images, cameras, held_out=change.get("held_out", ()), progress=False)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="steps >= 1"):
        FitSettings(steps=0)
    with pytest.raises(ValueError, match="density should be one of"):
        FitSettings(density="magic")
    with pytest.raises(ValueError, match="recipe should be one of 'default', 'paper', got 'magic'"):
        FitSettings.of("magic", 100, 100, 0, 0)
