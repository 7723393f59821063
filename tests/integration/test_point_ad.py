# SPDX-License-Identifier: Apache-2.0
"""PointAD's prompts through anomalib's commands: train, test, predict, export, and infer without CLIP."""

from pathlib import Path

import pytest
import torch
from anomalib.cli import AnomalibCLI

import anomalib_pose
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings
from anomalib_pose.models.point_ad import PointADInferencer
from anomalib_pose.sample_data import write_clouds
from anomalib_pose.scene.ply_table import read_ply_vertices
from small_clip import write_small_clip

anomalib_pose.register()

QUICK = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "clouds"
    write_clouds(root, ["ring", "peg"], 0, 64, train=0, test_good=2, test_per_defect=1, progress=False)
    return root


@pytest.mark.slow
def test_anomalibs_commands(data_root, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    monkeypatch.chdir(tmp_path)
    model = ["--model", "PointAD", "--model.clip_model", str(write_small_clip(tmp_path)), "--model.pretrained", ""]
    model += ["--model.deep_sets", "2"]
    data = ["--data", "MVTec3DRendered", "--data.root", str(data_root), "--data.category", "ring"]
    data += ["--data.train_category", "peg", "--data.views", "5", "--data.size", "64", "--data.num_workers", "0"]

    AnomalibCLI(args=["train", *model, *data, *QUICK, "--trainer.max_epochs", "2"])
    (checkpoint,) = [path for path in tmp_path.rglob("model.ckpt") if "latest" not in path.parts]
    checkpoint_flag = ["--ckpt_path", str(checkpoint)]
    tested = AnomalibCLI(args=["test", *model, *data, *QUICK, *checkpoint_flag, "--model.point_cloud_dir", "tested"])
    assert tested.engine.trainer.callback_metrics["image_AUROC"] >= 0
    assert len(list(Path("tested").rglob("*.ply"))) == 6
    AnomalibCLI(args=["predict", *model, *data, *QUICK, *checkpoint_flag])
    clouds = list(Path("results").rglob("point_clouds/**/*.ply"))
    assert len(clouds) == 6

    # the checkpoint holds all arguments
    export = [
        "export",
        "--model",
        "PointAD",
        *checkpoint_flag,
        "--export_type",
        "openvino",
        "--compression_type",
        "FP16",
    ]
    AnomalibCLI(args=[*export, "--onnx_kwargs", '{"images": 6}', "--export_root", "exported"])
    inferencer = PointADInferencer(next(Path("exported").rglob("model.xml")), RenderSettings.of_views(5, 64))
    assert inferencer.aggregation.threshold is not None
    loaded = anomalib_pose.PointAD.load_from_checkpoint(checkpoint)
    module = anomalib_pose.MVTec3DRendered(data_root, "ring", "peg", views=5, size=64, num_workers=0)
    module.setup()
    for batch in module.test_dataloader():
        image = Path(batch.image_path[0])
        prediction = inferencer.predict(image.parents[1] / "xyz" / f"{image.stem}.tiff", image)
        with torch.no_grad():
            expected = loaded.test_step(batch)
        assert prediction.score == pytest.approx(float(expected.object_score[0]), abs=5e-3)
        torch.testing.assert_close(prediction.point_map, expected.point_scores[0], rtol=0, atol=5e-3)
    assert all(read_ply_vertices(path)["score"].min() >= 0 for path in clouds)
