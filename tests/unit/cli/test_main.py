# SPDX-License-Identifier: Apache-2.0
"""The command line lists its commands, starts fast, and hands every other command to anomalib."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from anomalib_pose import cli
from anomalib_pose.cli import COMMANDS, main

PACKAGE = Path(cli.__file__).parent


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_heavy(name) -> None:
    code = f"""
import sys
from anomalib_pose.cli import main
sys.argv = ["anomalib-pose", *{[name] if name else []}, "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code
heavy = {{"torch", "anomalib", "lightning", "numpy", "scipy", "cv2", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout.startswith(f"usage: anomalib-pose {name or 'COMMAND'}")


def test_every_module_is_a_command() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == {name.replace("-", "_") for name in COMMANDS}
    for name in modules:
        assert import_module(f"anomalib_pose.cli.{name}").__doc__


def test_overview_has_one_line_for_each_command_and_names_anomalib_s(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", "--help"])
    main()
    overview = capsys.readouterr().out
    lines = [line.strip() for line in overview.splitlines()]
    for name, summary in COMMANDS.items():
        assert [line for line in lines if line.startswith(f"{name} ") and line.endswith(summary)], overview
    assert max(map(len, lines)) <= 78
    assert "anomalib's own" in overview
    assert "train, fit, validate, test, predict, export, benchmark" in overview


def test_without_a_command_the_status_is_two(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["anomalib-pose"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    output = capsys.readouterr()
    assert not output.out
    assert "localize" in output.err


@pytest.mark.parametrize("arguments", [["train", "--model", "SplatPose"], ["--version"]])
def test_every_other_command_is_anomalib_s(monkeypatch, arguments) -> None:
    calls = []
    monkeypatch.setattr("anomalib.cli.cli.main", lambda: calls.append(list(sys.argv)))
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", *arguments])
    main()
    assert calls == [["anomalib-pose", *arguments]]


def test_main_runs_a_sub_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", "configs"])
    main()
    assert "splatpose_mad.yaml" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError, OSError, FileNotFoundError, ImportError])
def test_an_error_is_one_line_and_status_one(monkeypatch, command_error, error) -> None:
    def fail(_options: object) -> None:
        reason = "the reason"
        raise error(reason)

    monkeypatch.setattr("anomalib_pose.cli.configs.run", fail)
    assert command_error("configs") == "anomalib-pose configs: error: the reason"


def test_a_closed_pipe_is_no_error_message() -> None:
    command = [sys.executable, "-m", "anomalib_pose.cli", "configs", "splatpose_mad"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert not process.stderr.read()
    assert process.wait(60) == 1
