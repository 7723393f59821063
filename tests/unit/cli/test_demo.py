# SPDX-License-Identifier: Apache-2.0
"""The demo writes its data set once, and trains with the configuration that comes with the package."""

import pytest

from anomalib_pose.cli.configs import configs_folder


@pytest.fixture
def calls(monkeypatch) -> list:
    """Calls of the writer and of anomalib's command line, which do nothing here."""
    calls = []

    def write_mad(root, category, **options) -> None:
        calls.append(("write", str(root), category, options))
        (root / category).mkdir(parents=True)

    monkeypatch.setattr("anomalib_pose.sample_data.write_mad", write_mad)
    monkeypatch.setattr("anomalib.cli.AnomalibCLI", lambda arguments: calls.append(("anomalib", *arguments)))
    return calls


def test_the_data_set_is_written_once(run_command, calls, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_command("demo")
    config = str(configs_folder() / "splatpose_sample.yaml")
    train = ("anomalib", "train", "--config", config, "--data.init_args.root", "sample/MAD")
    sizes = {"seed": 0, "size": 160, "test_good": 10, "test_per_defect": 5}
    assert calls == [("write", "sample/MAD", "toy", sizes), train]
    run_command("demo")
    assert calls[2:] == [train]


def test_further_arguments_go_to_anomalib(run_command, calls, tmp_path) -> None:
    (tmp_path / "toy").mkdir()
    run_command("demo", "--root", tmp_path, "--", "--model.init_args.steps", "5")
    ((_, *arguments),) = calls
    assert arguments[-4:] == ["--data.init_args.root", str(tmp_path), "--model.init_args.steps", "5"]
