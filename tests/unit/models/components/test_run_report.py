# SPDX-License-Identifier: Apache-2.0
"""Tables at the end of a run: stages, metrics with units, and the next command."""

from types import SimpleNamespace

import pytest
import torch

from anomalib_pose import storage
from anomalib_pose.models import SplatPose
from anomalib_pose.models.components.run_report import RunReport, export_run, metrics_table, next_commands
from anomalib_pose.progress import StageTime, print_table, stage


class Model:
    """What the report needs of a model."""

    def __init__(self) -> None:
        self.hparams = {"steps": 5}
        self.printed: list[str] = []

    def print(self, text: str) -> None:
        self.printed.append(text)


def make_trainer(*, bar: bool = True, verbose: bool = True, rank_zero: bool = True, ckpt_path: str | None = None):
    return SimpleNamespace(
        is_global_zero=rank_zero,
        progress_bar_callback=object() if bar else None,
        test_loop=SimpleNamespace(verbose=verbose),
        callback_metrics={"image_AUROC": torch.tensor(0.98765), "seconds_per_query": 0.4},
        checkpoint_callback=None,
        fast_dev_run=False,
        default_root_dir="",
        ckpt_path=ckpt_path,
    )


def run(report: RunReport, trainer, model: Model, *, fit: bool = True, test: bool = True) -> str:
    batch = SimpleNamespace(image=torch.zeros(3, 3, 4, 4))
    if fit:
        report.setup(trainer, model, "fit")
        report.on_train_start(trainer, model)
        report.end_reading()
        report.stages.append(StageTime("Render the view bank", 1.5))
        report.on_validation_epoch_start(trainer, model)
        report.on_validation_batch_end(trainer, model, None, batch, 0)
        report.on_validation_end(trainer, model)
        report.on_fit_end(trainer, model)
    if test:
        report.setup(trainer, model, "test")
        report.on_test_start(trainer, model)
        report.on_test_epoch_start(trainer, model)
        report.on_test_batch_end(trainer, model, None, batch, 0)
        report.on_test_end(trainer, model)
    return "\n".join(model.printed)


def test_a_training_prints_each_figure_once():
    trainer = make_trainer(ckpt_path="model.ckpt")
    text = run(RunReport(), trainer, Model())
    words = ["Read the training views", "Render the view bank", "Validate 3 queries", "Fit and validate"]
    for name in [*words, "Test 3 queries", "image_AUROC", "anomalib predict", "anomalib export"]:
        assert text.count(name) == 1, name
    assert not trainer.test_loop.verbose  # Lightning's table has the same figures


def test_a_fit_alone_and_a_test_alone_have_their_stages():
    assert "Render the view bank" in run(RunReport(), make_trainer(), Model(), test=False)
    text = run(RunReport(), make_trainer(), Model(), fit=False)
    assert "Test 3 queries" in text
    assert "Fit and validate" not in text


def test_a_second_test_starts_a_new_table():
    report, model = RunReport(), Model()
    run(report, make_trainer(), model)
    model.printed.clear()
    text = run(report, make_trainer(), model, fit=False)
    assert text.count("Test 3 queries") == 1
    assert "Fit and validate" not in text


@pytest.mark.parametrize("options", [{"rank_zero": False}, {"bar": False, "verbose": False}])
def test_silent_runs_print_nothing(options):
    assert run(RunReport(), make_trainer(**options), Model()) == ""


def test_a_run_without_bars_has_metrics_and_the_next_command_alone():
    trainer = make_trainer(bar=False, ckpt_path="model.ckpt")
    text = run(RunReport(), trainer, Model())
    assert all(text.count(name) == 1 for name in ("image_AUROC", "anomalib predict", "anomalib export"))
    assert "queries" not in text
    assert not trainer.test_loop.verbose  # Lightning's table has the same figures


def test_a_test_that_is_not_verbose_has_no_table():
    assert "image_AUROC" not in run(RunReport(), make_trainer(verbose=False), Model())


def test_the_results_folder_is_checked_before_a_fit(tmp_path):
    (tmp_path / "file").write_text("")
    trainer = make_trainer()
    trainer.checkpoint_callback = SimpleNamespace(dirpath=tmp_path / "file" / "weights", best_model_path="")
    with pytest.raises(ValueError, match="is a file: name another folder"):
        RunReport().setup(trainer, Model(), "fit")
    RunReport().setup(trainer, Model(), "test")


@pytest.mark.parametrize(
    ("root", "message"), [("file", "is a file"), ("file/deeper", "is a file"), ("/proc", "written")]
)
def test_the_folder_of_an_export_is_checked_before_the_work(tmp_path, root, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=message), export_run(tmp_path / root):
        pytest.fail("the export goes on")


def test_an_export_prints_its_stages_and_removes_leftovers(tmp_path, capsys):
    leftover = tmp_path / f".export-{storage._HOST}-999999999-abcdefgh"
    leftover.mkdir()
    with export_run(tmp_path), stage("Trace the graph"):
        assert not leftover.exists()
    assert "Trace the graph" in capsys.readouterr().out


def test_metrics_have_sensible_digits_and_units():
    lines: list[str] = []
    figures = {"image_AUROC": torch.tensor(0.98765432), "pose_MedianAngleError": 0.137015, "seconds_per_query": 12.345}
    print_table(metrics_table(figures), lines.append)
    rows = [line.split() for line in lines[0].splitlines()]
    assert rows == [
        ["Metric", "Value", "Unit"],
        ["image_AUROC", "0.9877"],
        ["pose_MedianAngleError", "0.1370", "degrees"],
        ["seconds_per_query", "12.3", "s"],
    ]


def test_the_next_command_has_the_settings_that_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = SplatPose(steps=7, rolls=12, rasterizer="cpu", fit_checkpoint="")
    predict, export = next_commands(model, tmp_path / "my results" / "model.ckpt")
    assert predict == (
        "Predict:  anomalib predict --model SplatPose --model.rolls 12 --model.rasterizer cpu "
        "--ckpt_path 'my results/model.ckpt' --data FOLDER"
    )
    assert (
        export
        == "Export:   anomalib export --model SplatPose --ckpt_path 'my results/model.ckpt' --export_type openvino"
    )
