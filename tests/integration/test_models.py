# SPDX-License-Identifier: Apache-2.0
"""anomalib's conformance tests on all scene models of the registry, and tests of features that only they have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.deploy import ExportType, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import get_model, list_models
from anomalib.models.components import AnomalibModule
from PIL import Image

import anomalib_pose
from anomalib_pose.data import MAD, PoseBatch
from anomalib_pose.registry import scene_models
from anomalib_pose.sample_data.mad import write_mad

anomalib_pose.register()

SMALL = {
    "OmniposeAD": {"steps": 150, "bank_spacing": 25.0, "starts": 2, "holdout_every": 8},
    "PIAD": {"steps": 150, "max_gaussians": 800, "bank_spacing": 25.0, "starts": 2, "holdout_every": 8},
    "SplatPose": {"steps": 150, "max_gaussians": 800, "bank_spacing": 25.0, "starts": 2, "holdout_every": 8},
}
MODELS = sorted(SMALL)
# Tests of shared parts run with one model; with the other models they are slow tests.
ONE_QUICKLY = [pytest.param(name, marks=[] if name == "SplatPose" else [pytest.mark.slow]) for name in MODELS]


def make_engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, logger=False, devices=1, accelerator="cpu", enable_progress_bar=False)


def make_model(name: str, **changes: object) -> AnomalibModule:
    return getattr(anomalib_pose, name)(**{**SMALL[name], **changes})


@pytest.fixture(scope="module")
def mad_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "MAD"
    for number, category in enumerate(("car", "house")):
        write_mad(root, category, number, 64, views=40, test_good=3, test_per_defect=1, progress=False)
    return root


def make_data(root: Path, category: str = "car") -> MAD:
    return MAD(root=str(root), category=category, num_workers=0)


@pytest.fixture(scope="module", params=MODELS)
def trained(request, mad_root, tmp_path_factory):
    """Name of a fitted model, the model, the folder of its engine and its checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    model, engine = make_model(request.param), make_engine(folder)
    engine.fit(model, datamodule=make_data(mad_root))
    checkpoint = Path(engine.trainer.checkpoint_callback.best_model_path)
    return request.param, model, folder, checkpoint


def scene_values(model: AnomalibModule) -> torch.Tensor:
    """All numbers of the fitted scene in one vector."""
    return torch.cat([tensor.double().flatten() for tensor in model.model.scene.state_dict().values()])


def scores_of(batches: list[PoseBatch]) -> torch.Tensor:
    return torch.cat([batch.pred_score for batch in batches])


def test_every_scene_model_is_tested():
    # tests/unit/models, test_looking3d_export.py and test_point_ad.py test Looking3D and PointAD.
    assert set(scene_models()) == set(MODELS)
    assert all(AnomalibModule in getattr(anomalib_pose, name).__bases__ for name in MODELS)


def test_fit_leaves_a_checkpoint(trained):
    *_, checkpoint = trained
    assert checkpoint.name == "model.ckpt"
    assert torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]


def test_anomalib_lists_and_builds_the_model_by_name(trained):
    name, *_ = trained
    assert isinstance(get_model(name, **SMALL[name]), AnomalibModule)
    assert {entry.replace("_", "") for entry in list_models()} >= {name.lower()}


def test_new_model_with_the_checkpoint_predicts_equal_scores(trained, mad_root):
    name, model, folder, checkpoint = trained
    first = make_engine(folder / "a").predict(model, datamodule=make_data(mad_root))
    again = make_engine(folder / "b").predict(
        make_model(name), datamodule=make_data(mad_root), ckpt_path=str(checkpoint)
    )
    torch.testing.assert_close(scores_of(again), scores_of(first), rtol=0, atol=0)
    for before, after in zip(first, again, strict=True):
        torch.testing.assert_close(before.anomaly_map, after.anomaly_map, rtol=0, atol=0)


def test_engine_test_reports_all_metrics_and_pose_errors(trained, mad_root):
    name, _, folder, checkpoint = trained
    engine = make_engine(folder / "test")
    (results,) = engine.test(make_model(name), datamodule=make_data(mad_root), ckpt_path=str(checkpoint))
    expected = {"image_AUROC", "image_AUPR", "image_F1Score", "pixel_AUROC", "pixel_AUPRO", "pixel_F1Score"}
    expected |= {"pose_MedianAngleError", "pose_MedianCentreError", "seconds_per_query"}
    assert expected <= set(results)
    assert results["pose_MedianAngleError"] < 3
    assert results["pixel_AUROC"] > 0.7
    panels = list(folder.rglob("images/**/*.png"))
    assert panels
    assert Image.open(panels[0]).width >= 4 * Image.open(panels[0]).height


@pytest.mark.parametrize("trained", ONE_QUICKLY, indirect=True)
def test_resumed_training_and_validation_keep_the_fitted_scene(trained, mad_root):
    name, model, folder, checkpoint = trained
    again = make_model(name)
    make_engine(folder / "train").train(again, datamodule=make_data(mad_root), ckpt_path=str(checkpoint))
    torch.testing.assert_close(scene_values(again), scene_values(model), rtol=0, atol=0)
    make_engine(folder / "validate").validate(
        make_model(name), datamodule=make_data(mad_root), ckpt_path=str(checkpoint)
    )


def test_folder_of_photographs_is_predicted(trained, mad_root):
    """A stock ``ImageBatch`` without intrinsics becomes a ``PoseBatch`` with all fields, detached from autograd."""
    name, _, folder, checkpoint = trained
    batches = make_engine(folder / "path").predict(
        make_model(name), data_path=mad_root / "car" / "test" / "good", ckpt_path=str(checkpoint)
    )
    assert len(batches) == 3
    for batch in batches:
        assert isinstance(batch, PoseBatch)
        assert batch.reference.shape == batch.image.shape
        assert not any(
            tensor.requires_grad for tensor in (batch.reference, batch.anomaly_map, batch.estimated_camera_to_world)
        )
        difference = (batch.reference - batch.image).abs().mean()
        assert difference < 0.1


def test_pose_estimate_of_a_checkpoint_equals_that_of_prediction(trained, mad_root):
    _, model, folder, checkpoint = trained
    image = mad_root / "car" / "test" / "good" / "0.png"
    (batch,) = make_engine(folder / "localized").predict(model, data_path=image)
    estimate = anomalib_pose.estimate_pose(checkpoint, image)
    torch.testing.assert_close(estimate.camera.camera_to_world, batch.estimated_camera_to_world[0], rtol=0, atol=1e-5)
    assert estimate.confidence == pytest.approx(batch.pose_confidence.item(), abs=1e-4)


def test_query_without_an_object_has_a_low_confidence(trained, tmp_path):
    name, _, folder, checkpoint = trained
    Image.fromarray(np.full((48, 48, 3), 255, np.uint8)).save(tmp_path / "empty.png")
    (batch,) = make_engine(folder / "empty").predict(make_model(name), data_path=tmp_path, ckpt_path=str(checkpoint))
    assert batch.pose_confidence.item() < 0.2
    assert batch.pred_score.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("trained", ONE_QUICKLY, indirect=True)
def test_second_object_is_fitted_in_the_same_engine(trained, mad_root, tmp_path):
    name, first, *_ = trained
    engine = make_engine(tmp_path)
    engine.fit(make_model(name, steps=5), datamodule=make_data(mad_root, "car"))
    second = make_model(name)
    engine.fit(second, datamodule=make_data(mad_root, "house"))
    (results,) = engine.test(second, datamodule=make_data(mad_root, "house"))
    assert results["pose_MedianAngleError"] < 5
    assert not torch.equal(scene_values(second), scene_values(first))


@pytest.mark.slow
def test_fitted_model_is_fitted_to_another_object(trained, mad_root, tmp_path):
    """Fitting the same instance to another object forgets the first."""
    name, *_ = trained
    model = make_model(name, steps=5)
    make_engine(tmp_path / "a").fit(model, datamodule=make_data(mad_root, "car"))
    first = scene_values(model)
    make_engine(tmp_path / "b").fit(model, datamodule=make_data(mad_root, "house"))
    assert not torch.equal(first, scene_values(model))


def test_torch_export(trained, mad_root, monkeypatch):
    name, _, folder, checkpoint = trained
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    path = make_engine(folder / "export").export(
        make_model(name), ExportType.TORCH, export_root=folder / "export", ckpt_path=str(checkpoint)
    )
    image = mad_root / "car" / "test" / "good" / "0.png"
    exported = TorchInferencer(path=path, device="cpu").predict(image)
    batches = make_engine(folder / "engine").predict(make_model(name), data_path=image, ckpt_path=str(checkpoint))
    torch.testing.assert_close(exported.pred_score.flatten(), scores_of(batches), atol=1e-3, rtol=0)
    assert not exported.anomaly_map.requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_training_without_poses_is_refused(name, mad_root, tmp_path):
    data = Folder("car", root=mad_root / "car", normal_dir="train/good", abnormal_dir="test/Stains", num_workers=0)
    with pytest.raises(ValueError, match="learns from posed images"):
        make_engine(tmp_path).fit(make_model(name), datamodule=data)


@pytest.mark.slow
def test_adam_refiner_has_gradients_in_the_test_loop(mad_root, tmp_path):
    """Lightning's test loop runs in inference mode, where the refiner of the paper needs gradients."""
    model = make_model("SplatPose", refiner="adam", refiner_steps=3, starts=1, steps=5)
    engine = make_engine(tmp_path)
    engine.fit(model, datamodule=make_data(mad_root))
    (results,) = engine.test(model, datamodule=make_data(mad_root))
    assert np.isfinite(results["image_AUROC"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "magic"}, "recipe should be"),
        ({"refiner": "magic"}, "refiner should be"),
        ({"comparator": "magic"}, "comparator should be"),
        ({"holdout_every": 1}, "holdout_every should be"),
        ({"starts": 0}, "At least one start"),
        ({"rolls": 0}, "rolls should be a number"),
        ({"matcher": "magic"}, "matcher should be"),
        ({"matcher": "xfeat"}, "needs matcher_weights"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_model("SplatPose", **change)


@pytest.mark.parametrize(("part", "file"), [("backbone", "weights_path"), ("matcher", "matcher_weights")])
def test_missing_weights_are_reported_before_the_fit(mad_root, tmp_path, part, file):
    names = {"backbone": "mobilenetv2_100", "matcher": "aliked"}
    model = make_model("SplatPose", **{part: names[part], file: str(tmp_path / "none.pth")})
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        make_engine(tmp_path).fit(model, datamodule=make_data(mad_root))
    assert not len(model.model.scene)
