# SPDX-License-Identifier: Apache-2.0
"""PointAD with mutual scoring in anomalib's engine."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.engine import Engine
from anomalib.metrics import AUPRO
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anomalib_pose.data import CloudBatch
from anomalib_pose.models import PointAD
from anomalib_pose.models.point_ad.aggregation import object_scores
from anomalib_pose.models.point_ad.cloud_grid import grid_of
from anomalib_pose.models.point_ad.mutual import MutualScorer
from anomalib_pose.scene.ply_table import read_ply_vertices


def make_engine(folder: Path, **changes) -> Engine:
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    return Engine(default_root_dir=folder, **{**settings, **changes})


def numbers(batches, name) -> np.ndarray:
    return torch.cat([getattr(batch, name) for batch in batches]).numpy()


@pytest.fixture(scope="module")
def predicted(make_clouds, make_mutual, tmp_path_factory):
    """Predict without post-processing: batches, and the folder of results."""
    folder = tmp_path_factory.mktemp("predicted")
    batches = make_engine(folder).predict(make_mutual(post_processor=False), datamodule=make_clouds())
    return batches, folder


def test_scores_agree_with_the_parts(predicted, make_clouds, make_mutual):
    batches, _ = predicted
    data, model = make_clouds(), make_mutual()
    data.setup()
    scorer = MutualScorer(model.model.extractor, model.model.settings)
    clouds = list(data.test_dataloader())
    scorer.collect(clouds, torch.device("cpu"), progress=False)
    assert len(batches) == len(clouds) == 7
    for prediction, batch in zip(batches, clouds, strict=True):
        expected = object_scores(scorer.score_images(batch)[0], grid_of(batch, 0))
        assert isinstance(prediction, CloudBatch)
        torch.testing.assert_close(prediction.pred_score[0], expected.score)
        torch.testing.assert_close(prediction.anomaly_map.squeeze(), expected.point_map)
        assert prediction.anomaly_map.shape[-2:] == prediction.gt_mask.shape[-2:]
        torch.testing.assert_close(prediction.point_scores[0], expected.point_map)
        torch.testing.assert_close(prediction.object_score, prediction.pred_score)
        assert 0 < float(prediction.pred_score) < 1, "metrics squeeze scores outside of [0, 1], batch by batch"


def test_predictions_write_clouds_and_pictures(predicted):
    batches, folder = predicted
    files = {path.relative_to(path.parents[4]): path for path in folder.rglob("point_clouds/**/*.ply")}
    assert len(files) == 7
    for batch in batches:
        defect, name = Path(batch.image_path[0]).parts[-3], Path(batch.image_path[0]).stem
        (path,) = [file for file in files.values() if file.parts[-3] == defect and file.stem == name]
        table, valid = read_ply_vertices(path), batch.valid[0]
        points = np.stack([table[axis] for axis in "xyz"], 1)
        np.testing.assert_array_equal(points, batch.points[0][valid].numpy())
        np.testing.assert_array_equal(table["score"], batch.point_scores[0][valid].numpy())
    pictures = list(folder.rglob("images/**/*.png"))
    assert len(pictures) == 7
    with Image.open(pictures[0]) as picture:
        assert picture.size == (5 * 256, 256)


@pytest.fixture(scope="module")
def tested(make_clouds, make_mutual, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tested")
    model = make_mutual(point_cloud_dir=str(folder / "clouds"))
    reads = []
    features = model.model.extractor.forward
    model.model.extractor.forward = lambda images: reads.append(len(images)) or features(images)
    (results,) = make_engine(folder).test(model, datamodule=make_clouds(eval_batch_size=3))
    return results, folder, reads


def test_metrics_agree_with_other_programs(tested, predicted):
    results, _, _ = tested
    batches, _ = predicted
    labels, scores = numbers(batches, "gt_label"), numbers(batches, "pred_score")
    assert results["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert results["image_AUPR"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
    masks, maps = numbers(batches, "gt_mask"), numbers(batches, "anomaly_map").reshape(7, 48, 48)
    valid = numbers(batches, "valid")
    assert results["pixel_AUROC"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-6)
    assert results["pixel_ForegroundAUROC"] == pytest.approx(roc_auc_score(masks[valid], maps[valid]), abs=1e-6)
    aupro = AUPRO(fields=["anomaly_map", "gt_mask"])
    for batch in batches:
        aupro.update(batch)
    assert results["pixel_AUPRO"] == pytest.approx(float(aupro.compute()), abs=1e-6)


def test_results_are_marked_as_transductive(tested):
    assert tested[0]["transductive"] == 1.0


def test_clouds_are_written_when_a_folder_is_given(tested):
    files = list((tested[1] / "clouds").rglob("*.ply"))
    assert len(files) == 7
    assert all(read_ply_vertices(path)["score"].min() >= 0 for path in files)
    assert max(read_ply_vertices(path)["score"].max() for path in files) <= 1


def test_validation_and_test_on_one_set_compute_features_once(tested):
    # five views, then the photograph, of seven clouds
    assert tested[2] == [5, 1] * 7


def test_a_test_without_a_folder_writes_no_clouds(make_clouds, make_mutual, tmp_path):
    model = make_mutual(fuse_rgb=False, visualizer=False)
    make_engine(tmp_path).test(model, datamodule=make_clouds())
    assert not list(tmp_path.rglob("*.ply"))
    assert all(scores.photograph_map is None for scores in model.model._scores.values())


def test_the_whole_set_is_compared_if_the_trainer_is_limited(make_clouds, make_mutual, predicted, tmp_path):
    batches, _ = predicted
    limited = make_engine(tmp_path, limit_predict_batches=2, limit_val_batches=2).predict(
        make_mutual(post_processor=False, visualizer=False), datamodule=make_clouds()
    )
    torch.testing.assert_close(numbers(limited, "pred_score"), numbers(batches, "pred_score")[:2])


def test_a_fit_without_training_writes_a_checkpoint(make_clouds, make_mutual, predicted, tmp_path):
    engine = make_engine(tmp_path)
    engine.fit(make_mutual(visualizer=False), datamodule=make_clouds())
    (checkpoint,) = [path for path in tmp_path.rglob("model.ckpt") if "latest" not in path.parts]
    # the checkpoint holds the backbone, so its file is not needed
    restored = make_mutual(visualizer=False)
    restored.model.extractor.weights_path = "gone.pth"
    batches = make_engine(tmp_path / "b").predict(restored, datamodule=make_clouds(), ckpt_path=str(checkpoint))
    assert len(batches) == 7
    np.testing.assert_array_equal(numbers(batches, "object_score"), numbers(predicted[0], "object_score"))
    # the checkpoint also holds the ranges of the normalization
    assert set(numbers(batches, "pred_label").tolist()) == {False, True}


def test_images_without_views_are_refused(make_mutual):
    with pytest.raises(ValueError, match=r"but this batch has none\. Use MVTec3DRendered"):
        make_mutual().test_step(ImageBatch(image=torch.rand(1, 3, 8, 8)))


def test_mutual_scoring_has_no_graph(make_mutual, tmp_path):
    with pytest.raises(ValueError, match="no graph of a single image"):
        make_mutual()(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="no graph of a single image"):
        make_mutual().to_onnx(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scoring": "magic"}, "scoring should be one of .*'mutual'.*, got 'magic'"),
        ({"scoring": "mutual", "backbone": "magic"}, "backbone should be"),
        ({"scoring": "mutual", "layers": (9,)}, "layers should be"),
        ({"scoring": "mutual", "smoothing": -1.0}, "smoothing should be 0 or more"),
        ({"scoring": "mutual", "top_fraction": 2.0}, "top_fraction in"),
        ({"scoring": "mutual", "share": 0.0}, "share should be"),
        ({"scoring": "mutual", "neighbourhoods": (2,)}, "neighbourhoods should be"),
        ({"scoring": "mutual", "windows": (0,)}, "windows should be"),
    ],
)
def test_arguments_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        PointAD(**change)


@pytest.mark.parametrize(("epochs", "expected"), [(15, 15), (30, 15), (10, 10), (20, 20)])
def test_the_last_epoch_is_validated_and_saved(make_mutual, epochs, expected):
    trainer = SimpleNamespace(check_val_every_n_epoch=15, max_epochs=epochs)
    model = make_mutual()
    model.trainer = trainer
    model.on_train_start()
    assert trainer.check_val_every_n_epoch == expected
