# SPDX-License-Identifier: Apache-2.0
"""PointAD with CLIP in anomalib's engine: learned prompts, and the ensemble."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.engine import Engine
from lightning.pytorch import Callback
from torch.nn import functional

from anomalib_pose.data import CloudBatch
from anomalib_pose.models import PointAD
from anomalib_pose.models.point_ad.aggregation import object_scores
from anomalib_pose.models.point_ad.checkpoint import write_prompts
from anomalib_pose.models.point_ad.cloud_grid import grid_of
from anomalib_pose.models.point_ad.scorer import ClipScorer
from anomalib_pose.models.point_ad.text import direction, ensemble_features

RATE = 0.02  # the features of the small CLIP's texts change little


def make_engine(folder: Path, **changes) -> Engine:
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, **changes}
    return Engine(default_root_dir=folder, **settings)


def scores(batches) -> np.ndarray:
    return torch.cat([batch.object_score for batch in batches]).numpy()


class Losses(Callback):
    """Records the losses of training steps."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *args) -> None:
        self.values.append(float(outputs["loss"]))


def one_vs_rest(make_clouds, **changes):
    return make_clouds(**{"train_category": "peg", "train_batch_size": 4, "size": 64, **changes})


@pytest.fixture(scope="module")
def trained(make_clip, make_clouds, tmp_path_factory):
    """Train prompts on pegs: model, results, checkpoint, and losses."""
    folder = tmp_path_factory.mktemp("trained")
    model = make_clip(visualizer=False, learning_rate=RATE)
    losses = Losses()
    engine = make_engine(folder, max_epochs=6, check_val_every_n_epoch=6, callbacks=[losses])
    results = engine.train(model, datamodule=one_vs_rest(make_clouds))
    (checkpoint,) = [path for path in folder.rglob("model.ckpt") if "latest" not in path.parts]
    return model, results[0], checkpoint, losses.values


def test_a_training_lowers_the_loss_and_tests_another_category(trained):
    _, results, _, losses = trained
    assert len(losses) == 12, "two steps of up to four of seven pegs, six times"
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2]), losses
    assert "transductive" not in results
    assert 0 <= results["image_AUROC"] <= 1


def test_features_of_a_view_are_computed_once(make_clip, make_clouds, tmp_path):
    model = make_clip(visualizer=False, evaluator=False)
    model.setup("fit")
    sizes = []
    encode = ClipScorer.features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipScorer, "features", lambda self, images: sizes.append(len(images)) or encode(self, images))
        make_engine(tmp_path, max_epochs=3, limit_val_batches=0).fit(model, datamodule=one_vs_rest(make_clouds))
    assert sizes == [5] * 7
    assert model.model._cache is None, "a training frees its features"


def test_a_checkpoint_holds_prompts_and_not_clip(trained, make_clip, make_clouds, tmp_path):
    model, _, path, _ = trained
    checkpoint = torch.load(path, weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if name.startswith("model.")]
    assert {*checkpoint["point_ad_prompts"]} == {"normal", "abnormal", "deep", "start"}
    assert path.stat().st_size < 200_000
    # the sizes of the checkpoint replace those of the arguments
    restored = make_clip(visualizer=False, prompt_length=5, deep_sets=1)
    predicted = make_engine(tmp_path / "a").predict(restored, datamodule=one_vs_rest(make_clouds), ckpt_path=str(path))
    expected = make_engine(tmp_path / "b").predict(model, datamodule=one_vs_rest(make_clouds))
    np.testing.assert_array_equal(scores(predicted), scores(expected))
    np.testing.assert_array_equal(
        torch.cat([part.pred_score for part in predicted]), torch.cat([part.pred_score for part in expected])
    )
    loaded = PointAD.load_from_checkpoint(path)
    assert torch.equal(loaded.model.direction(), model.model.direction())
    assert loaded.model.clip is not None


def test_prompt_files_are_used_without_training(trained, make_clip, make_clouds, tmp_path):
    model = trained[0]
    file = write_prompts(tmp_path / "prompts.pt", model.model.prompts, model.model.clip.text)
    untrained = make_clip(prompt_path=str(file), visualizer=False, prompt_length=9)
    assert untrained.learning_type == LearningType.ZERO_SHOT
    predicted = make_engine(tmp_path / "a").predict(untrained, datamodule=one_vs_rest(make_clouds))
    expected = make_engine(tmp_path / "b").predict(model, datamodule=one_vs_rest(make_clouds))
    np.testing.assert_array_equal(scores(predicted), scores(expected))


def test_a_training_resumes_from_a_checkpoint(trained, make_clip, make_clouds, tmp_path):
    # without a stop, or resumed after one of two epochs; one batch has all clouds, as their order is sampled again
    data = one_vs_rest(make_clouds, train_batch_size=7)

    def learn(folder, epochs, checkpoint=None) -> tuple[PointAD, str]:
        model = make_clip(visualizer=False, evaluator=False, learning_rate=RATE)
        engine = make_engine(folder, max_epochs=epochs, limit_val_batches=0)
        engine.fit(model, datamodule=data, ckpt_path=checkpoint)
        return model, engine.trainer.checkpoint_callback.best_model_path

    _, half = learn(tmp_path / "half", 1)
    resumed, _ = learn(tmp_path / "rest", 2, half)
    whole, _ = learn(tmp_path / "whole", 2)
    started, _ = learn(tmp_path / "one", 1)
    assert not torch.allclose(whole.model.prompts.normal, started.model.prompts.normal, atol=1e-4)
    for name, value in whole.model.prompts.named_parameters():
        torch.testing.assert_close(dict(resumed.model.prompts.named_parameters())[name], value, rtol=0, atol=1e-5)


def test_prompts_that_are_not_learned_raise(make_clip, make_clouds, tmp_path):
    for run in ("test", "predict"):
        with pytest.raises(ValueError, match=r"not learned yet\. Train first"):
            getattr(make_engine(tmp_path), run)(make_clip(visualizer=False), datamodule=make_clouds())


def test_ensemble_scores_agree_with_the_parts(make_clip, make_clouds, small, tmp_path):
    data = make_clouds()
    model = make_clip("ensemble", visualizer=False, post_processor=False)
    assert model.learning_type == LearningType.ZERO_SHOT
    predicted = make_engine(tmp_path).predict(model, datamodule=data)
    scorer, towards = ClipScorer(small.vision), direction(ensemble_features(small.text, "ring"))
    batches = list(data.test_dataloader())
    assert len(predicted) == len(batches) == 7
    for prediction, batch in zip(predicted, batches, strict=True):
        expected = object_scores(scorer(batch.views[0], batch.image[0], towards), grid_of(batch, 0))
        assert isinstance(prediction, CloudBatch)
        torch.testing.assert_close(prediction.object_score[0], expected.score)
        torch.testing.assert_close(prediction.point_scores[0], expected.point_map)


def test_the_ensemble_names_the_category_or_the_given_word(make_clip, small):
    assert torch.equal(
        make_clip("ensemble").model.direction("cable_gland"), direction(ensemble_features(small.text, "cable gland"))
    )
    for model, category in ((make_clip("ensemble"), ""), (make_clip("ensemble", object_word="object"), "ring")):
        assert torch.equal(model.model.direction(category), direction(ensemble_features(small.text)))


def test_forward_scores_single_images(trained, make_clip):
    model = trained[0]
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    output = model(images)
    truth = ClipScorer(model.model.clip.vision)(images, None, model.model.direction())
    torch.testing.assert_close(output.pred_score, truth.view_scores)
    torch.testing.assert_close(
        output.anomaly_map, functional.interpolate(truth.view_maps[:, None], (96, 96), mode="bilinear")
    )


def test_creating_a_model_reads_no_file(monkeypatch):
    monkeypatch.setattr("anomalib_pose.models.point_ad.clip_scorers.load_clip", lambda *_, **__: pytest.fail("read"))
    for scoring in ("prompts", "ensemble"):
        assert PointAD(scoring, prompt_path="missing.pth").model.clip is None


def test_a_checkpoint_of_another_scoring_is_refused(trained, make_clip, make_clouds, tmp_path):
    with pytest.raises(ValueError, match="checkpoint has scoring 'prompts', but this model has 'ensemble'"):
        make_engine(tmp_path).predict(
            make_clip("ensemble", visualizer=False), datamodule=make_clouds(), ckpt_path=str(trained[2])
        )


def test_prompts_of_another_clip_are_refused(trained, make_clip, make_clouds, tmp_path):
    # the seed also determines the random CLIP
    other = make_clip(visualizer=False, seed=1)
    with pytest.raises(ValueError, match="learned for another CLIP"):
        make_engine(tmp_path).predict(other, datamodule=make_clouds(), ckpt_path=str(trained[2]))


@pytest.mark.parametrize(
    ("change", "words"), [({"learning_rate": 0.0}, "learning_rate should be"), ({"vv_blocks": -1}, "vv_blocks should")]
)
def test_numbers_are_checked_before_clip_is_read(make_clip, change, words):
    with pytest.raises(ValueError, match=words):
        make_clip(**change)
