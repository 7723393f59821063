# SPDX-License-Identifier: Apache-2.0
"""Interrupted fits continue stage by stage to the same model, from files that do not stay behind."""

import logging
import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.models import SplatPose
from anomalib_pose.models.components import fit_resume, fit_run, scene_fit
from anomalib_pose.models.components.fit_resume import fit_digest, open_checkpoint
from anomalib_pose.models.components.view_collection import CollectedView, ViewCollection
from anomalib_pose.scene import fit as fit_module
from anomalib_pose.scene import fit_loop
from sample_models import SIZE, TRAINING
from sample_scenes import make_toy

CAMERAS = TRAINING[torch.arange(0, 40, 3)]
SETTINGS = {
    "steps": 12,
    "max_gaussians": 60,
    "bank_spacing": 40.0,
    "rasterizer": "cpu",
    "holdout_every": 7,
    "sh_degree": 0,
    "surface_views": 3,
    "starts": 1,
}
STAGES = [
    "Fit the scene",
    "Render the view bank",
    "Store residuals of training views",
    "Search held-out cameras",
    "Calibrate the comparison",
    "Collect surface statistics",
]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return make_toy().render(CAMERAS, torch.ones(3)).rgb.permute(0, 3, 1, 2).clamp(0, 1)


class Loader:
    """Training views as a loader of one batch, and a trainer that saves results in a folder."""

    def __init__(self, folder: Path, *, saves: bool = True) -> None:
        self.default_root_dir = str(folder)
        self.progress_bar_callback = None
        self.fast_dev_run = False
        self.checkpoint_callback = None
        if saves:
            self.checkpoint_callback = type("Callback", (), {"dirpath": None, "best_model_path": ""})()

    def save(self) -> None:
        path = Path(self.default_root_dir) / "model.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self.checkpoint_callback.best_model_path = str(path)


def make_model(images: Tensor, folder: Path, *, saves: bool = True, **settings) -> SplatPose:
    """Make a model that has read its training views in a run whose results go to a folder."""
    model = SplatPose(**{**SETTINGS, **settings})
    model.__dict__["_trainer"] = Loader(folder, saves=saves)
    views = zip(images, CAMERAS.camera_to_world, CAMERAS.K, strict=True)
    model._views = ViewCollection()
    model._views.views = [CollectedView(image, pose.double(), K, None, "view") for image, pose, K in views]
    return model


@pytest.fixture(autouse=True)
def trainer(monkeypatch):
    monkeypatch.setattr(SplatPose, "trainer", property(lambda self: self.__dict__["_trainer"]))


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> dict[str, Tensor]:
    """State of a model whose fit was not interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplatPose, "trainer", property(lambda self: self.__dict__["_trainer"]))
        model = make_model(images, tmp_path_factory.mktemp("whole") / "v0")
        model.fit()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(model: SplatPose, whole: dict[str, Tensor]) -> None:
    assert model.state_dict().keys() == whole.keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=0, equal_nan=True)


def fit_until(model: SplatPose, monkeypatch, stage: str) -> None:
    """Fit a model until a stage, where the process ends as by SIGKILL: nothing is cleaned up."""

    class Killed(BaseException):
        pass

    run = fit_resume.FitStages.run

    def killed(self, title, work):
        def stop():
            raise Killed

        return run(self, title, stop if title == stage else work)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(fit_resume.FitStages, "run", killed)
        model.fit()


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_killed_calibration_continues_after_the_last_finished_stage(
    images, whole, tmp_path, monkeypatch, caplog, stage
):
    fit_until(make_model(images, tmp_path / "v0"), monkeypatch, stage)
    (file,) = tmp_path.glob("fit_*.ckpt")
    ran = []
    run = fit_resume.stage
    monkeypatch.setattr(fit_resume, "stage", lambda title: (ran.append(title), run(title))[1])
    caplog.set_level(logging.INFO)
    model = make_model(images, tmp_path / "v1")
    model.fit()
    assert ran == STAGES[STAGES.index(stage) :]
    assert f"The fit continues from {file}, after the stage '{STAGES[STAGES.index(stage) - 1]}'" in caplog.text
    assert_equal(model, whole)


def test_a_killed_fit_continues_from_its_last_save(images, whole, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    step, calls = fit_module._Fitter.one_step, []

    def killed(self):
        calls.append(1)
        if len(calls) == 9:
            raise SystemExit
        step(self)

    monkeypatch.setattr(fit_loop, "_SAVE_EVERY", 4)
    monkeypatch.setattr(fit_module._Fitter, "one_step", killed)
    with pytest.raises(SystemExit):
        make_model(images, tmp_path / "v0").fit()
    model = make_model(images, tmp_path / "v1")
    model.fit()
    assert "The fit continues from step 8" in caplog.text
    assert len(calls) == 9 + 4
    assert_equal(model, whole)


def test_the_file_lives_until_the_model_is_saved(images, tmp_path, monkeypatch):
    monkeypatch.setattr(scene_fit, "_calibrate", lambda *args: None)
    model = make_model(images, tmp_path / "v0")
    model.fit()
    assert len(list(tmp_path.glob("fit_*.ckpt"))) == 1
    model.on_train_end()
    assert len(list(tmp_path.glob("fit_*.ckpt"))) == 1
    model.trainer.save()
    model.on_train_end()
    assert not list(tmp_path.glob("*fit_*"))


@pytest.mark.parametrize("same", [True, False])
def test_a_repeated_fit_names_the_earlier_model_that_holds_it(images, tmp_path, monkeypatch, caplog, same):
    monkeypatch.setattr(scene_fit, "_calibrate", lambda *args: None)
    caplog.set_level(logging.INFO)
    model = make_model(images, tmp_path / "v0")
    model.fit()
    model.trainer.save()
    model.on_train_end()
    content: dict = {"state_dict": {}}
    model.on_save_checkpoint(content)
    path = tmp_path / "v0" / "weights" / "lightning" / "model.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    (path.parent / "other.ckpt").write_text("no checkpoint")
    make_model(images if same else images * 0.5, tmp_path / "v1").fit()
    assert (f"{path} holds the same fit" in caplog.text) == same
    assert ("anomalib test --model SplatPose" in caplog.text) == same


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "text", "another fit", "another step", "another stage", "another state", "code"]
)
def test_other_files_are_replaced_when_automatic_and_refused_when_named(images, tmp_path, monkeypatch, caplog, damage):
    model = make_model(images, tmp_path / "v0")
    fit_until(model, monkeypatch, STAGES[1])
    (file,) = tmp_path.glob("fit_*.ckpt")
    content = torch.load(file, weights_only=True)

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    damaged = {
        "empty": b"",
        "cut": file.read_bytes()[:-1000],
        "text": b"text",
        "another fit": {**content, "digest": "0"},
        "another step": {"fingerprint": "other", "step": 3},
        "another stage": {"weights": torch.zeros(1)},
        "another state": {**content, "detector": {}},
        "code": {**content, "trap": Trap()},
    }[damage]

    def write(path: Path) -> None:
        path.write_bytes(damaged) if isinstance(damaged, bytes) else torch.save(damaged, path)

    write(file)
    model = make_model(images, tmp_path / "v1")
    with monkeypatch.context() as patch:
        patch.setattr(scene_fit, "_calibrate", lambda *args: None)
        model.fit()
        assert [record.levelname for record in caplog.records if str(file) in record.message] == ["WARNING"]
        write(tmp_path / "named.ckpt")
        with pytest.raises(ValueError, match=r"named\.ckpt .*Remove it to start again"):
            make_model(images, tmp_path / "v2", fit_checkpoint=str(tmp_path / "named.ckpt")).fit()
    assert not (tmp_path / "sprung").exists()


def test_a_named_file_is_used_and_removed(images, tmp_path, monkeypatch):
    named = tmp_path / "deep" / "named.ckpt"
    fit_until(make_model(images, tmp_path / "v0", fit_checkpoint=str(named)), monkeypatch, STAGES[3])
    assert named.is_file()
    model = make_model(images, tmp_path / "v1", fit_checkpoint=str(named))
    model.fit()
    model.trainer.save()
    model.on_train_end()
    assert not named.exists()
    assert not list(tmp_path.glob("**/fit_*"))


@pytest.mark.parametrize(("setting", "saves"), [("", True), ("auto", False)])
def test_runs_without_a_checkpoint_write_nothing(images, tmp_path, monkeypatch, setting, saves):
    monkeypatch.setattr(scene_fit, "_calibrate", lambda *args: None)
    make_model(images, tmp_path / "v0", saves=saves, fit_checkpoint=setting).fit()
    assert not list(tmp_path.rglob("*"))


def test_a_full_disk_is_one_warning_and_the_fit_goes_on(images, whole, tmp_path, monkeypatch, caplog):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_loop, "write_weights", full)
    monkeypatch.setattr(fit_loop, "_SAVE_EVERY", 2)
    model = make_model(images, tmp_path / "v0")
    model.fit()
    assert sum("The fit goes on, but cannot be continued later" in text for text in caplog.messages) == 1
    assert_equal(model, whole)


@pytest.mark.parametrize(
    ("setting", "folder", "message"),
    [
        ("{tmp}", "v0", "is a folder"),
        ("{tmp}/file/fit.ckpt", "v0", "is a file"),
        ("auto", "file/v0", "is a file"),
        ("auto", "/proc/v0", "cannot be written"),
    ],
)
def test_outputs_are_checked_before_the_fit(images, tmp_path, setting, folder, message):
    (tmp_path / "file").write_text("")
    model = make_model(images, tmp_path / folder, fit_checkpoint=setting.format(tmp=tmp_path))
    for check in (model.check_outputs, model.fit):
        with pytest.raises(ValueError, match=message):
            check()


def test_a_disk_without_space_for_the_model_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_run, "checkpoint_megabytes", lambda *_: 1e12)
    with pytest.raises(ValueError, match="needs about 1000000000000 MB"):
        make_model(images, tmp_path / "v0").fit()


def test_files_of_other_fits_stay_for_a_week(images, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(scene_fit, "_calibrate", lambda *args: None)
    young, old, foreign = (tmp_path / f"{name}.ckpt" for name in ("fit_" + 16 * "0", "fit_" + 16 * "1", "fit_mine"))
    for path in (young, old, foreign):
        path.write_text("")
    for path in (old, foreign):
        os.utime(path, 2 * (time.time() - 8 * 24 * 3600,))
    make_model(images, tmp_path / "v0").fit()
    assert (young.exists(), old.exists(), foreign.exists()) == (True, False, True)
    assert f"{young} is not used" in caplog.text


def test_the_digest_depends_on_all_that_a_fit_depends_on(images):
    masks = torch.ones(len(images), SIZE, SIZE)
    changed_image, changed_mask = images.clone(), masks.clone()
    changed_image[3, 1, 5, 5] += 1 / 255
    changed_mask[2, 1, 1] = 0
    moved = Camera(CAMERAS.camera_to_world + 1e-6, CAMERAS.K, SIZE, SIZE)
    digests = [
        fit_digest("SplatPose", {"steps": 3}, images, CAMERAS, masks),
        fit_digest("PIAD", {"steps": 3}, images, CAMERAS, masks),
        fit_digest("SplatPose", {"steps": 4}, images, CAMERAS, masks),
        fit_digest("SplatPose", {"steps": 3}, changed_image, CAMERAS, masks),
        fit_digest("SplatPose", {"steps": 3}, images, moved, masks),
        fit_digest("SplatPose", {"steps": 3}, images, CAMERAS, changed_mask),
        fit_digest("SplatPose", {"steps": 3}, images, CAMERAS, None),
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == fit_digest("SplatPose", {"steps": 3, "fit_checkpoint": "x"}, images, CAMERAS, masks)


@pytest.mark.parametrize(
    ("setting", "results", "expected"),
    [
        ("auto", "results/v0", "results/fit_d.ckpt"),
        ("auto", "results/latest", "results/latest/fit_d.ckpt"),
        ("auto", None, None),
        ("x.ckpt", "results/v0", "x.ckpt"),
        ("", "results/v0", None),
    ],
)
def test_where_the_file_lies(setting, results, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint(setting, None if results is None else Path(results), "d")
    assert (None if checkpoint is None else str(checkpoint.path)) == expected
