# SPDX-License-Identifier: Apache-2.0
"""The command line lists its commands, starts fast, and hands every other command to anomalib."""

import errno
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


ERRORS = {
    "value": (ValueError("the reason"), "the reason"),
    "lines": (ValueError("the\n  reason\n"), "the reason"),
    "jsonargparse": (
        ValueError(
            "Does not validate against any of the Union subtypes\nErrors:\n  - Expected a <class 'NoneType'>\n"
            "  - SplatPose's rolls should be in [1, 360], got 0.\nGiven value type: Namespace"
        ),
        "error: SplatPose's rolls should be in [1, 360], got 0.",
    ),
    "no text": (ValueError(), "ValueError"),
    "missing file": (FileNotFoundError("no file x"), "no file x"),
    "system": (PermissionError(errno.EACCES, "Permission denied", "out/a.json"), "Permission denied: out/a.json"),
    "disk": (OSError(errno.ENOSPC, "No space left on device", "out"), "No space left on device: out"),
    "folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), "Is a directory: out"),
    "no name": (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device"),
    "memory": (MemoryError(), "The memory of this machine is too small for this run"),
    "numpy": (MemoryError("Unable to allocate 9 TiB"), "Unable to allocate 9 TiB"),
    "torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "The memory of this machine"),
    "extra": (ImportError("pip install 'anomalib-pose[mesh]'"), "anomalib-pose[mesh]"),
    "missing module": (ModuleNotFoundError("No module named 'trimesh'"), "No module named 'trimesh'"),
    "worker": (
        ValueError(
            "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            '  File "a.py", line 1, in f\n    raise ValueError(msg)\nValueError: the file: is bad\n'
        ),
        "error: the file: is bad",
    ),
    "other model": (
        RuntimeError("Error(s) in loading state_dict for Patchcore:\n\tMissing key(s) in state_dict: a, b"),
        "error: The checkpoint does not fit Patchcore with these settings.",
    ),
    "download": (
        RuntimeError("weights of 'a' could not be downloaded"),
        "error: weights of 'a' could not be downloaded",
    ),
    "link": (IsADirectoryError(errno.EISDIR, "Is a directory", "results/latest"), "results/latest is a folder"),
    "encoding": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
}


def raiser(error: BaseException):
    def fail(*_options: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("command", ["configs", "anomalib"])
def test_every_error_of_a_user_is_one_line(monkeypatch, capsys, command, name) -> None:
    error, text = ERRORS[name]
    monkeypatch.setattr("anomalib_pose.cli.configs.run", raiser(error))
    monkeypatch.setattr("anomalib_pose.cli._run_anomalib", raiser(error))
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", "configs" if command == "configs" else "train"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"anomalib-pose{' configs' if command == 'configs' else ''}: error: ")
    assert text in line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("sample mad out --category toy --seed -1", "argument --seed: expected 0 or more, got -1"),
        ("render-views mesh.obj out --seed -1", "argument --seed: expected 0 or more, got -1"),
        ("render-views mesh.obj out --elevation nan", "argument --elevation: expected finite numbers, got nan"),
        ("draw-defects in out --stain-area 0 inf", "argument --stain_area: expected finite numbers, got [0.0, inf]"),
        ("localize --ckpt_path a --data b --intrinsics 1 1 nan 1", "argument --intrinsics: expected finite numbers"),
    ],
)
def test_numbers_of_the_command_line_are_checked(run_command, capsys, words, text) -> None:
    name, *arguments = words.split()
    with pytest.raises(SystemExit) as end:
        run_command(name, *arguments)
    assert end.value.code == 2
    assert text in capsys.readouterr().err.splitlines()[-1]


FILES = {"file": b"x", "lfs.pt": b"version https://git-lfs.github.com/spec/v1\n", "empty.pt": b""}
WRONG = [
    "sample clouds file/x",
    "sample chairs file/x",
    "sample mad file/x --category toy",
    "configs --copy file",
    "configs none",
    "localize --ckpt_path none --data file",
    "localize --ckpt_path lfs.pt --data file",
    "localize --ckpt_path folder --data file",
    "draw-defects none out",
    "draw-defects folder out",
    "render-views none out",
    "render-views file out",
    "render-clouds folder out",
    "render-clouds none out",
    "convert-checkpoint looking3d lfs.pt out.pt",
    "convert-checkpoint looking3d folder out.pt",
    "convert-checkpoint pointad empty.pt out.pt",
    "convert-checkpoint pointad none out.pt",
    "demo --root file/x",
]


@pytest.mark.parametrize("words", WRONG)
def test_every_command_names_a_wrong_path_in_one_line(command_error, tmp_path, monkeypatch, words) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    line = command_error(*words.split())
    assert any(name in line for name in (*FILES, "none", "folder"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "folder"])


def test_an_interruption_has_status_130(monkeypatch, capsys) -> None:
    def ended_by_lightning() -> None:
        try:
            raise KeyboardInterrupt  # noqa: TRY301
        except KeyboardInterrupt:
            sys.exit(1)

    monkeypatch.setattr(sys, "argv", ["anomalib-pose", "train"])
    for fault in (raiser(KeyboardInterrupt()), ended_by_lightning):
        monkeypatch.setattr("anomalib_pose.cli._run_anomalib", fault)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 130
        assert capsys.readouterr().err == "anomalib-pose: interrupted\n"


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("a"), RuntimeError("a"), AssertionError()])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, error) -> None:
    monkeypatch.setattr("anomalib_pose.cli._run_anomalib", raiser(error))
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", "train"])
    with pytest.raises(type(error)):
        main()


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


def test_a_termination_has_status_143(monkeypatch, capsys) -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    monkeypatch.setattr(sys, "argv", ["anomalib-pose", "train"])
    monkeypatch.setattr("anomalib_pose.cli._run_anomalib", raiser(SIGTERMException()))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 143
    assert capsys.readouterr().err == "anomalib-pose: terminated\n"


@pytest.mark.parametrize(("word", "near"), [("traiin", "train"), ("localise", "localize"), ("xyz", "")])
def test_an_unknown_command_is_named_with_a_similar_one(monkeypatch, capsys, word, near) -> None:
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", word])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no command {word!r}" in line
    assert ("Did you mean" in line) == bool(near)
    assert repr(near) in line or not near


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ("--model SplatPose --model.steps sixty", ["steps", "Expected a int. Got value: sixty"]),
        ("--model SplatPose --model.comparator foo", ["comparator", "'calibrated'", "foo"]),
        ("--model SplatPose --model.step 60", ["Option 'step' is not accepted"]),
        ("--model SplatPos", ["SplatPos"]),
        ("--model SplatPose --data MADD", ["MADD"]),
        ("--model SplatPose --trainer.no_such 1", ["no_such"]),
    ],
)
def test_a_wrong_argument_of_anomalib_s_commands_is_one_line(monkeypatch, capsys, words, texts) -> None:
    monkeypatch.setattr(sys, "argv", ["anomalib-pose", "train", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("anomalib-pose: error: ")
    assert all(text in line for text in texts), line
    assert len(line) < 400
