# SPDX-License-Identifier: Apache-2.0
"""The command ``anomalib-pose``: its own sub-commands, and anomalib's with the installed plug-ins registered.

Each sub-command of ``COMMANDS`` is a module of this package. The module's docstring is the help text,
``add_arguments(parser)`` declares the arguments and ``run(options)`` does the work. Every other sub-command goes to
anomalib's command line. Nothing heavy is imported before the arguments are parsed.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

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

_OVERVIEW = """\
usage: anomalib-pose COMMAND ...

Pose-agnostic and 3D anomaly detection for anomalib.

commands:
{commands}

"anomalib-pose COMMAND --help" describes a command. Every other command is
anomalib's own, with the models and data modules of this package registered:
train, fit, validate, test, predict, export, benchmark, install.
"""


def main() -> None:
    """Run the command that ``sys.argv`` names.

    Raises:
        SystemExit: with status 2 for wrong arguments, 1 for a wrong file or value; the reason is on standard error.
    """
    words = sys.argv[1:]
    if words and words[0] in COMMANDS:
        run_command(words[0], words[1:])
    elif not words:
        sys.stderr.write(_overview())
        sys.exit(2)
    elif words[0] in {"-h", "--help"}:
        sys.stdout.write(_overview())
    else:
        _run_anomalib()


def run_command(name: str, arguments: Sequence[str]) -> None:
    """Run one of the package's own sub-commands.

    Args:
        name: key of ``COMMANDS``.
        arguments: words of the command line after the sub-command's name.

    Raises:
        SystemExit: see ``main``.
    """
    command = import_module(f"{__name__}.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        f"anomalib-pose {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("anomalib_pose").setLevel(logging.INFO)
    try:
        command.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        parser.exit(1)
    except (OSError, ValueError, ImportError) as error:  # ImportError names the extra to install
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return _OVERVIEW.format(commands="\n".join(f"  {name:{width}}  {line}" for name, line in COMMANDS.items()))


def _run_anomalib() -> None:
    from anomalib.cli.cli import main as anomalib_main

    from anomalib_pose.plugin import register

    register()
    anomalib_main()
