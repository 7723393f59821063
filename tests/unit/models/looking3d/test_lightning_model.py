# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation and checkpoints of Looking3D, on batches like those of the data module."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from anomalib.data import ImageBatch, ImageItem
from anomalib.engine import Engine
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from anomalib_pose.data import ViewBatch, ViewItem
from anomalib_pose.models import Looking3D
from anomalib_pose.models.looking3d import reference
from anomalib_pose.models.looking3d.checkpoint import PARTS
from anomalib_pose.models.looking3d.photograph import inspect


def images_on_white(count: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    images = torch.ones(count, 3, 256, 256)
    images[..., 80:180, 70:200] = 0.2 + 0.6 * torch.rand(count, 3, 1, 1, generator=g)
    images[..., 100:140, 90:150] = 0.7 * torch.rand(count, 3, 40, 60, generator=g)
    return images


class Queries(Dataset):
    """Queries of two shapes; every second query is anomalous."""

    def __init__(self, count: int = 4) -> None:
        g = torch.Generator().manual_seed(5)
        views = images_on_white(4, 1).unflatten(0, (2, 2))
        xyz = 2 * torch.rand(2, 2, 32, 32, 3, generator=g) - 1
        points = torch.randint(70, 190, (2, 8, 2, 2), generator=g)
        self.items = [
            ViewItem(
                image=image,
                gt_label=torch.tensor(index % 2),
                reference_images=views[index // 2 % 2],
                reference_xyz=xyz[index // 2 % 2],
                box=torch.tensor([0.5, 0.4, 0.2, 0.3]) * (index % 2),
                pair_images=views[index // 2 % 2],
                pair_points=points[index // 2 % 2],
                shape_id=f"chair{index // 2 % 2}",
            )
            for index, image in enumerate(images_on_white(count, 2))
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> ViewItem:
        return self.items[index]


def loader(count: int = 4) -> DataLoader:
    return DataLoader(Queries(count), batch_size=2, collate_fn=ViewBatch.collate)


def make_engine(folder: Path, **changes: object) -> Engine:
    settings = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    return Engine(default_root_dir=folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def network() -> Looking3D:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Looking3D(topk=20, visualizer=False)


def test_the_summed_loss_has_gradients_for_all_parameters(network):
    """For every batch: in distributed training, processes would otherwise wait for missing gradients."""
    network.train()
    (first, *_) = loader()
    first.gt_label, first.box = torch.zeros(2, dtype=torch.long), torch.zeros(2, 4)
    with torch.random.fork_rng():
        alignment, task = network.alignment_loss(first), network.task_loss(first)
        (alignment + task).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    network.zero_grad()


def test_queries_of_one_shape_share_the_views_of_the_first_query(network):
    """In evaluation mode the number of encoded images makes no difference."""
    network.eval()
    (batch,) = DataLoader(Queries(2), batch_size=2, collate_fn=ViewBatch.collate)
    with torch.no_grad():
        same = network.task_loss(batch)
        batch.reference_images[1] = images_on_white(2, 11)
        shared = network.task_loss(batch)
        batch.shape_id = None
        apart = network.task_loss(batch)
    torch.testing.assert_close(shared, same, rtol=0, atol=1e-5)
    assert abs(float(apart - same)) > 1e-4


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_learning_rate_grows_and_decays(network, monkeypatch, schedule):
    """25 epochs of 4 steps, with 9 steps of warm-up."""
    loop = SimpleNamespace(setup_data=lambda: None)
    trainer = SimpleNamespace(max_epochs=25, num_training_batches=8, accumulate_grad_batches=2, fit_loop=loop)
    monkeypatch.setattr(network, "_trainer", trainer)
    monkeypatch.setattr(network, "schedule", schedule)
    monkeypatch.setattr(network, "warmup_steps", 9)
    (optimizer,), (scheduler,) = network.configure_optimizers()
    assert scheduler["interval"] == "step"
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"] / 2e-5)
        optimizer.step()
        scheduler["scheduler"].step()
    later = [
        math.cos(math.pi * step / 200) ** 2 if schedule == "cosine" else [1, 0.1][step >= 80] for step in range(100)
    ]
    assert rates == pytest.approx([min(1, (step + 1) / 10) * rate for step, rate in enumerate(later)])


@pytest.mark.slow
def test_half_precision_changes_outputs_little(network):
    """Matching stays in single precision, so that equal features select equal keys."""
    network.eval()
    (first, *_) = loader(2)
    query, views = first.image[:1], first.reference_images[:1, :1]
    with torch.no_grad():
        query_features, view_features = network.model.encoder(query), network.model.encoder(views[0])[None]

        def outputs() -> tuple[torch.Tensor, ...]:
            shape = network.model.reference(views, first.reference_xyz[:1, :1], view_features)
            return network.model(query, shape, query_features)

        single = outputs()
        with torch.autocast("cpu", torch.bfloat16):
            half = outputs()
    assert half[0].dtype == torch.bfloat16
    for half_output, single_output in zip(half, single, strict=True):
        torch.testing.assert_close(half_output.float(), single_output, rtol=0, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("two_steps", [False, True])
def test_a_training_writes_a_checkpoint_with_its_weights(tmp_path, two_steps):
    torch.manual_seed(0)
    model = Looking3D(topk=20, visualizer=False, two_steps=two_steps, schedule="step", learning_rate=1e-4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = make_engine(tmp_path)
    engine.fit(model, train_dataloaders=loader())
    assert engine.trainer.global_step == (4 if two_steps else 2)
    after = model.state_dict()
    for part in ("model.encoder.", "model.projector.", "model.attention_decoder.", "alignment.encoder_ema.backbone.c"):
        assert any(not torch.equal(after[name], before[name]) for name in after if name.startswith(part)), part
    moved = (after["alignment.projector_ema.mlp.0.weight"] - before["alignment.projector_ema.mlp.0.weight"]).abs().max()
    trained = (after["model.projector.mlp.0.weight"] - before["model.projector.mlp.0.weight"]).abs().max()
    assert 0 < moved < 0.01 * trained
    assert {"train_alignment_loss", "train_task_loss"} <= {*engine.trainer.callback_metrics}
    again = Looking3D.load_from_checkpoint(engine.trainer.checkpoint_callback.best_model_path, visualizer=False)
    assert again.automatic_optimization is not two_steps
    for part in ("model", "alignment"):
        loaded, trained = (getattr(one, part).state_dict() for one in (again, model))
        assert all(torch.equal(value, trained[name]) for name, value in loaded.items())


@pytest.mark.slow
def test_a_training_resumes_from_a_checkpoint(tmp_path):
    """Two epochs with a stop in between have the results of two epochs without it."""

    def trained(name: str, epochs: int, seed: int, checkpoint: str | None = None) -> tuple[Looking3D, str]:
        torch.manual_seed(seed)
        model = Looking3D(topk=20, image_size=128, visualizer=False, schedule="step", learning_rate=1e-4)
        engine = make_engine(tmp_path / name, max_epochs=epochs)
        engine.fit(model, train_dataloaders=loader(2), ckpt_path=checkpoint)
        return model, engine.trainer.checkpoint_callback.best_model_path

    whole, _ = trained("whole", 2, 0)
    first, checkpoint = trained("first", 1, 0)
    resumed, _ = trained("rest", 2, 1, checkpoint)
    after_one_epoch = first.state_dict()
    for name, value in resumed.state_dict().items():
        # thresholds are NaN before a validation
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=0, atol=1e-6, equal_nan=True, msg=name)
    weight = "model.projector.mlp.0.weight"
    assert not torch.equal(resumed.state_dict()[weight], after_one_epoch[weight])


@pytest.mark.slow
@pytest.mark.parametrize("two_steps", [False, True])
def test_distributed_training_gets_each_gradient_once(tmp_path, two_steps):
    """One process is enough to detect missing or repeated gradients."""
    model = Looking3D(topk=20, visualizer=False, two_steps=two_steps, schedule="step")
    strategy = "ddp_find_unused_parameters_true" if two_steps else "ddp"
    engine = make_engine(tmp_path, strategy=strategy)
    engine.fit(model, train_dataloaders=loader())
    assert engine.trainer.global_step == (4 if two_steps else 2)


@pytest.mark.slow
def test_descriptors_of_four_queries_are_learned():
    torch.manual_seed(0)
    model = Looking3D(topk=20, visualizer=False, learning_rate=1e-4)
    (batch,) = DataLoader(Queries(4), batch_size=4, collate_fn=ViewBatch.collate)
    optimizer = torch.optim.Adam([part for part in model.parameters() if part.requires_grad], 1e-4, betas=(0.0, 0.999))
    losses = []
    for _ in range(10):
        loss = torch.stack([model.alignment_loss(batch), model.task_loss(batch)])
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert losses[-1][0] < 0.7 * losses[0][0]


@pytest.mark.slow
def test_evaluation_encodes_each_shape_once_and_reports_metrics(network, tmp_path, monkeypatch):
    encoded = []
    encode = network._shapes.encode
    monkeypatch.setattr(network._shapes, "encode", lambda *parts: encoded.append(1) or encode(*parts))
    (results,) = make_engine(tmp_path).test(network, dataloaders=loader(3))
    boxes = {f"{prefix}{name}" for prefix in ("detected_", "anomalous_") for name in ("BoxIoU", "BoxAccuracy")}
    assert {"image_AUROC", "image_Accuracy"} | boxes <= {*results}
    assert len(encoded) == 2
    batches = make_engine(tmp_path / "predict").predict(network, dataloaders=loader(3))
    items = Queries(3).items
    network.eval()
    with torch.no_grad():
        shapes = [network.model.reference(item.reference_images[None], item.reference_xyz[None]) for item in items[::2]]
    for index, item in enumerate(items):
        batch, at = batches[index // 2], index % 2
        with torch.no_grad():
            truth = network.model(item.image[None], shapes[index // 2])
        torch.testing.assert_close(batch.pred_score[at], truth.logit.sigmoid()[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.pred_box[at], truth.box[0], rtol=0, atol=1e-5)
        residual = torch.nn.functional.interpolate(truth.residual[None], (256, 256), mode="bilinear")[0]
        torch.testing.assert_close(batch.anomaly_map[at].squeeze(), residual[0], rtol=0, atol=1e-5)
        assert bool(batch.pred_label[at]) == bool(batch.pred_score[at] > 0.5)


@pytest.fixture
def own_reference(monkeypatch):
    views, xyz = images_on_white(2, 7), torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(8))
    monkeypatch.setattr(reference, "load_reference", lambda path: (views, xyz))
    return views, xyz


@pytest.mark.slow
def test_photographs_without_views_are_compared_with_the_models_reference(network, own_reference, tmp_path):
    monkey = pytest.MonkeyPatch()
    monkey.setattr(network, "reference", "views")
    photographs = torch.nn.functional.interpolate(images_on_white(2, 9), (300, 280), mode="bilinear")
    items = [ImageItem(image=image) for image in photographs]
    batches = make_engine(tmp_path).predict(
        network, dataloaders=DataLoader(items, batch_size=2, collate_fn=ImageBatch.collate)
    )
    network.eval()
    with torch.no_grad():
        shape = network.model.reference(*(part[None] for part in own_reference))
        truth = inspect(network.model, photographs, shape)
        alone = network(photographs)
    torch.testing.assert_close(batches[0].pred_score, truth.pred_score, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone.pred_score, truth.pred_score, rtol=0, atol=1e-5)
    assert batches[0].anomaly_map.shape[-2:] == (300, 280)
    torch.testing.assert_close(alone.anomaly_map, truth.anomaly_map, rtol=0, atol=1e-5)
    monkey.undo()


def test_transparent_photographs_are_read_on_white(network, own_reference, tmp_path, monkeypatch):
    """They are read again from their files: anomalib's batches have lost the transparency."""
    monkeypatch.setattr(network, "reference", "views")
    network._shapes.clear()
    (image,) = images_on_white(1, 9)
    alpha = (image.amin(0) < 1).float()
    rgba = (torch.cat([image * alpha, alpha[None]]) * 255).round().to(torch.uint8)
    folder = tmp_path / "photographs"
    folder.mkdir()
    Image.fromarray(rgba.permute(1, 2, 0).numpy()).save(folder / "chair.png")
    (batch,) = make_engine(tmp_path / "one").predict(network, data_path=folder)
    network.eval()
    with torch.no_grad():
        truth = network((image * 255).round()[None] / 255)
    torch.testing.assert_close(batch.pred_score, truth.pred_score, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.anomaly_map.squeeze(), truth.anomaly_map.squeeze(), rtol=0, atol=1e-5)
    Image.fromarray(rgba[:3].permute(1, 2, 0).numpy()).save(folder / "chair.png")
    with pytest.raises(ValueError, match=r"chair\.png cannot be used as a query: The background should be white"):
        make_engine(tmp_path / "two").predict(network, data_path=folder)
    monkeypatch.setattr(network, "mask_dir", str(tmp_path / "masks"))
    with pytest.raises(FileNotFoundError, match=r"none of .*chair\.png at .*masks"):
        make_engine(tmp_path / "three").predict(network, data_path=folder)
    (tmp_path / "masks").mkdir()
    Image.fromarray(rgba[3].numpy()).save(tmp_path / "masks" / "chair.png")
    (batch,) = make_engine(tmp_path / "four").predict(network, data_path=folder)
    torch.testing.assert_close(batch.pred_score, truth.pred_score, rtol=0, atol=1e-5)


def test_folders_of_photographs_are_read_by_our_reader(network, own_reference, tmp_path, monkeypatch):
    """Hidden files are left out, bit depths are the same, and an unreadable photograph is named."""
    monkeypatch.setattr(network, "reference", "views")
    network._shapes.clear()
    (image,) = images_on_white(1, 9)
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    for folder in ("usual", "deep"):
        (tmp_path / folder / ".ipynb_checkpoints").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / ".ipynb_checkpoints" / "chair.png")
        (tmp_path / folder / "._chair.png").write_bytes(b"resource fork")
    Image.fromarray(pixels).save(tmp_path / "usual" / "chair.png")
    tifffile.imwrite(tmp_path / "deep" / "chair.tif", pixels.astype(np.uint16) * 257, photometric="rgb")
    (usual,) = make_engine(tmp_path / "one").predict(network, data_path=tmp_path / "usual")
    (deep,) = make_engine(tmp_path / "two").predict(network, data_path=tmp_path / "deep")
    torch.testing.assert_close(deep.image, usual.image, rtol=0, atol=1e-6)
    torch.testing.assert_close(deep.pred_score, usual.pred_score, rtol=0, atol=1e-5)
    (tmp_path / "deep" / "cut.png").write_bytes((tmp_path / "usual" / "chair.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        make_engine(tmp_path / "three").predict(network, data_path=tmp_path / "deep")


def test_random_weights_cause_a_warning(network, own_reference, tmp_path, monkeypatch, caplog, published):
    """At evaluation, prediction and export, unless weights are trained, published, or from a checkpoint."""
    monkeypatch.setattr(network, "reference", "views")
    message = "weights are random, so its scores mean nothing"
    with caplog.at_level(logging.WARNING, "anomalib_pose"):
        for use in (network.on_test_start, network.on_predict_start, network.on_validation_start, network.feed_forward):
            caplog.clear()
            use()
            assert message in caplog.text
        caplog.clear()
        for learn in (network.on_train_start, lambda: network.on_load_checkpoint({})):
            monkeypatch.setattr(network, "random_weights", True)
            learn()
            network.on_test_start()
        Looking3D(weights_path=str(published), visualizer=False).on_test_start()
        assert not caplog.text


def test_photographs_without_a_reference_are_refused(network):
    network._shapes.clear()
    with pytest.raises(ValueError, match=r"Give --model\.reference"):
        network(images_on_white(1, 0))


def test_published_weights_are_loaded_and_their_path_is_not_saved(published, published_weights, tmp_path):
    model = Looking3D(weights_path=str(published), visualizer=False)
    assert model.hparams["weights_path"] == ""
    for part in PARTS:
        for name, value in getattr(model.model, part).state_dict().items():
            if not name.startswith("query_position"):
                assert torch.equal(value, published_weights[part][name])
    for name, value in model.alignment.projector_ema.state_dict().items():
        assert torch.equal(value, published_weights["projector_ema"][name])


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="schedule should be one of 'cosine', 'step', got 'linear'"):
        Looking3D(schedule="linear")
    with pytest.raises(FileNotFoundError, match="weights of Looking3D"):
        Looking3D(weights_path=str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match="set max_epochs to 1 or more"):
        make_engine(tmp_path, max_epochs=-1, max_steps=1).fit(Looking3D(), train_dataloaders=loader(2))
