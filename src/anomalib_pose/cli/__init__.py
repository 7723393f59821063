# SPDX-License-Identifier: Apache-2.0
"""The command ``anomalib-pose``: its own sub-commands, and anomalib's with the installed plug-ins registered.

Each sub-command of ``COMMANDS`` is a module of this package. The module's docstring is the help text,
``add_arguments(parser)`` declares the arguments and ``run(options)`` does the work. Every other sub-command goes to
anomalib's command line. Nothing heavy is imported before the arguments are parsed.
"""

import argparse
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

COMMANDS = {
    "demo": "train SplatPose on a small sample data set",
    "sample": "write a sample data set: posed images, clouds or chairs",
    "configs": "list, print or copy the packaged configurations",
    "localize": "estimate the cameras of photographs of a fitted object",
    "draw-defects": "paint defects onto held-out photographs of an object",
    "render-views": "render reference views of a mesh for Looking3D",
    "render-clouds": "render the test clouds of a data set for PointAD",
    "convert-checkpoint": "convert published weights of Looking3D or PointAD",
}
"""Description of each sub-command, by name. The module has the same name with underscores."""

_OTHERS = ("MisconfigurationException", "BadZipFile", "UnassignedError")
"""Further exceptions of libraries that a wrong file or setting causes."""

_HOST_COMMANDS = ("train", "fit", "validate", "test", "predict", "export", "benchmark", "install")
"""Sub-commands of anomalib."""

_OVERVIEW = """\
usage: anomalib-pose COMMAND ...

Pose-agnostic and 3D anomaly detection for anomalib.

commands:
{commands}

"anomalib-pose COMMAND --help" describes a command. Every other command is
anomalib's own, with the models and data modules of this package registered:
{host_commands}.
"""


def main() -> None:
    """Run the command that ``sys.argv`` names.

    Raises:
        SystemExit: with status 2 for wrong arguments, 1 for a wrong file or value, for missing memory or disk space or
            a missing extra, 130 for an interruption, 143 for a termination; the reason is one line on standard error.
    """
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        run_command(words[0], words[1:])
    elif not words:
        sys.stderr.write(_overview())
        sys.exit(2)
    elif words[0] in {"-h", "--help"}:
        sys.stdout.write(_overview())
    elif not words[0].startswith("-") and words[0] not in _HOST_COMMANDS:
        near = get_close_matches(words[0], [*COMMANDS, *_HOST_COMMANDS], 1)
        advice = f"Did you mean {near[0]!r}? " if near else ""
        _exit(2, f"anomalib-pose: error: There is no command {words[0]!r}. {advice}anomalib-pose --help lists them.")
    else:
        with _errors_as_lines("anomalib-pose"):
            _run_anomalib()


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run one of the package's own sub-commands.

    Args:
        name: key of ``COMMANDS``.
        arguments: words of the command line after the sub-command's name.

    Raises:
        SystemExit: see ``main``.
    """
    program = f"anomalib-pose {name}"
    with _errors_as_lines(program):
        command = import_module(f"{__name__}.{name.replace('-', '_')}")
        parser = argparse.ArgumentParser(
            program, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(parser)
        options = parser.parse_args(arguments)
        _check_numbers(parser, options)
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("anomalib_pose").setLevel(logging.INFO)
        command.run(options)
        sys.stdout.flush()


def _check_numbers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with status 2 for a negative seed, or a number that is NaN or infinite."""
    for name, value in vars(options).items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            parser.error(f"argument --{name}: expected finite numbers, got {value}")
        if name == "seed" and value is not None and value < 0:
            parser.error(f"argument --{name}: expected 0 or more, got {value}")


@contextmanager
def _errors_as_lines(program: str) -> Iterator[None]:
    """End with a status and one line on standard error where files, values, memory or extras are at fault.

    Any other exception is a fault of the program, and keeps its traceback.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        _exit(130, f"{program}: interrupted")
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends an interrupted run by itself
            _exit(130, f"{program}: interrupted")
        if type(end).__name__ == "SIGTERMException":  # Lightning's, with status 0
            _exit(143, f"{program}: terminated")
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        logging.getLogger(__name__).debug("", exc_info=error)
        _exit(1, f"{program}: error: {' '.join(reason.split())}")


def _exit(status: int, line: str) -> NoReturn:
    with suppress(OSError):  # standard error may be closed
        sys.stderr.write(f"{line}\n")
    sys.exit(status)


def _reason(error: Exception) -> str | None:
    """Return what is at fault, or None for a fault of the program."""
    kind, text = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"The memory of this machine is too small for this run: use smaller images or settings. {text[:200]}"
    if isinstance(error, IsADirectoryError) and str(error.filename).endswith("latest"):
        return f"{error.filename} is a folder, in which anomalib needs a link: rename it."  # a test without training
    if isinstance(error, RuntimeError) and text.startswith("Error(s) in loading state_dict for "):
        name = text.split()[5].rstrip(":")
        return f"The checkpoint does not fit {name} with these settings."
    if isinstance(error, RuntimeError) and "could not be downloaded" in text:
        return text
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, OSError | ValueError | ImportError) or kind in _OTHERS:
        return _inner_reason(text) or kind  # ImportError names the extra to install
    return None


def _inner_reason(text: str) -> str:
    """Return the reason in a longer message.

    jsonargparse lists a reason for each type that an argument may have. PyTorch repeats the traceback of a worker.
    """
    if text.startswith("Caught ") and " in DataLoader worker process " in text:
        return re.split(r"^[\w.]+: ", text, flags=re.MULTILINE)[-1]
    if not text.startswith("Does not validate against any of the Union subtypes"):
        return text
    reasons = [line.strip()[2:] for line in text.splitlines() if line.strip().startswith("- ")]
    return next((reason for reason in reversed(reasons) if not reason.startswith("Expected a ")), text)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items())
    return _OVERVIEW.format(commands=commands, host_commands=", ".join(_HOST_COMMANDS))


def _run_anomalib() -> None:
    from anomalib.cli.cli import main as anomalib_main

    from anomalib_pose.plugin import register

    register()
    with _short_argument_errors():
        anomalib_main()


@contextmanager
def _short_argument_errors() -> Iterator[None]:
    """Let jsonargparse end with one line for a wrong argument, instead of all types that the argument may have."""
    from jsonargparse import ArgumentParser

    original = ArgumentParser.error

    def error(parser: ArgumentParser, message: str, ex: Exception | None = None) -> NoReturn:
        if not parser.exit_on_error:  # jsonargparse tries whether an argument is of a type
            original(parser, message, ex)
        _exit(2, f"anomalib-pose: error: {argument_reason(message)}")

    ArgumentParser.error = error  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ArgumentParser.error = original  # type: ignore[method-assign]


def argument_reason(message: str) -> str:
    """Return jsonargparse's message about an argument in one line: the key, and the last reason.

    Args:
        message: message over several lines.
    """
    lines = [line.strip() for line in message.split("\n  Given value type:")[0].splitlines() if line.strip()]
    reasons = [index for index, line in enumerate(lines) if line.startswith("- ")]
    parts = [lines[0], lines[reasons[-1]][2:], *lines[reasons[-1] + 1 :]] if reasons else lines
    text = re.sub(r"<class '([\w.]+)'>|typing\.", r"\1", " ".join(parts))
    return text.replace("  ", " ")
