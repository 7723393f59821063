# SPDX-License-Identifier: Apache-2.0
"""Every model names the datamodules that it can use, where it gets another one."""

from pathlib import Path

import anomalib.data
import pytest
import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.engine import Engine
from anomalib.pipelines.tiled_ensemble.components.utils.ensemble_tiling import EnsembleTiler, TileCollater
from torch.utils.data import DataLoader

import anomalib_pose
from anomalib_pose.data import CloudBatch, PoseBatch, ViewBatch
from anomalib_pose.data.batches import convert_batch
from anomalib_pose.models.components.datamodule_checks import KINDS, check_datamodule
from anomalib_pose.registry import load_model, model_names

OURS = {
    "posed": ("MAD", "MIP", "PosedFolder"),
    "views": ("BrokenChairs",),
    "clouds": ("MVTec3DRendered", "EyecandiesRendered", "Real3DADRendered"),
}
STOCK_IMAGES = ("MVTecAD", "Folder", "Visa", "BTech", "Kolektor")
STOCK_OTHERS = ("MVTec3D", "Folder3D", "Avenue")


def empty(name: str, module: object) -> AnomalibDataModule:
    """An instance of a datamodule without its constructor, which would read files."""
    datamodule_class = getattr(module, name)
    return datamodule_class.__new__(datamodule_class)


def refusal(model: str, datamodule: AnomalibDataModule | None, stage: str) -> str:
    """Return the message of the check; empty for none."""
    try:
        check_datamodule(model, load_model(model).data_kind, datamodule, stage)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("model", model_names())
def test_every_pair_of_model_and_datamodule(model, stage):
    kind = load_model(model).data_kind
    assert not refusal(model, None, stage)
    for other, names in OURS.items():
        for name in names:
            message = refusal(model, empty(name, anomalib_pose), stage)
            assert (message == "") == (other == kind), (name, message)
            assert not message or (model in message and name in message and KINDS[kind].names in message)
    for name in STOCK_IMAGES:
        accepted = stage != "fit" and kind != "clouds"
        assert (refusal(model, empty(name, anomalib.data), stage) == "") == accepted
    for name in STOCK_OTHERS:
        message = refusal(model, empty(name, anomalib.data), stage)
        assert f"got {name}: give --data" in message


def test_the_table_has_every_datamodule_of_this_package():
    named = {name for kind in OURS.values() for name in kind}
    modules = {name for name in anomalib_pose.data.__all__ if hasattr(getattr(anomalib_pose.data, name), "setup")}
    assert modules == named
    assert {kind: tuple(KINDS[kind].names.replace(" or ", ", ").split(", ")) for kind in KINDS} == OURS


def test_a_datamodule_of_a_user_passes():
    class Own(AnomalibDataModule):
        def _setup(self, _stage: str | None = None) -> None:
            raise NotImplementedError

    for model in model_names():
        assert not refusal(model, Own.__new__(Own), "fit")


@pytest.mark.parametrize("model", model_names())
def test_a_tiled_ensemble_is_refused(model):
    tiler = EnsembleTiler((32, 32), (32, 32), (64, 64))
    for names in OURS.values():
        datamodule = empty(names[0], anomalib_pose)
        datamodule.external_collate_fn = TileCollater(tiler, (0, 0), ImageBatch.collate)
        assert f"{model} does not work in anomalib's tiled ensemble" in refusal(model, datamodule, "fit")


class Photographs(anomalib.data.Folder):
    """A datamodule of photographs that needs no files."""

    def __init__(self) -> None:
        super().__init__("photographs", normal_dir="good", root="none")

    def prepare_data(self) -> None:
        """Do nothing."""

    def setup(self, stage: str | None = None) -> None:
        """Do nothing."""


@pytest.mark.parametrize("model", [name for name in model_names() if name != "PointAD"])
def test_a_training_on_photographs_is_refused_by_the_engine(model, tmp_path):
    Photographs.__module__ = "anomalib.data.datamodules.image.photographs"
    engine = Engine(default_root_dir=tmp_path, logger=False, accelerator="cpu", devices=1)
    with pytest.raises(ValueError, match=rf"{model} learns from .*, got Photographs: give --data"):
        engine.fit(load_model(model)(), datamodule=Photographs())
    assert not list(Path(tmp_path).rglob("*.ckpt"))


@pytest.mark.parametrize("batch_class", [PoseBatch, ViewBatch])
@pytest.mark.parametrize("other", [PoseBatch, ViewBatch, CloudBatch, ImageBatch])
def test_batches_of_another_model_are_named(batch_class, other):
    batch = other(image=torch.zeros(1, 3, 8, 8))
    if other in (batch_class, ImageBatch):
        assert type(convert_batch(batch, batch_class)) is batch_class
        return
    with pytest.raises(ValueError, match=f"class {batch_class.__name__} or ImageBatch, got {other.__name__}"):
        convert_batch(batch, batch_class)


@pytest.mark.parametrize("model", model_names())
@pytest.mark.parametrize("verb", ["fit", "test", "validate"])
def test_a_run_without_data_is_refused(model, verb, tmp_path):
    engine = Engine(default_root_dir=tmp_path, logger=False, accelerator="cpu", devices=1, max_epochs=1)
    word = "learns from" if verb == "fit" else "scores"
    with pytest.raises(ValueError, match=rf"{model} {word} .*, but the run has no data: give --data"):
        getattr(engine, verb)(load_model(model)())


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"])
@pytest.mark.parametrize("verb", ["fit", "test", "predict"])
def test_scene_models_refuse_other_precisions_before_the_work(precision, verb, tmp_path):
    engine = Engine(default_root_dir=tmp_path, logger=False, accelerator="cpu", devices=1, precision=precision)
    data = DataLoader([0])
    arguments = (data, data) if verb == "fit" else (data,)
    with pytest.raises(ValueError, match=r"SplatPose computes in float32: give --trainer.precision 32-true"):
        getattr(engine, verb)(load_model("SplatPose")(), *arguments)
