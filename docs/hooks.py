# SPDX-License-Identifier: Apache-2.0
"""Fills the reference pages from the package: help texts of the commands, and the configurations."""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from anomalib_pose.cli import COMMANDS

_ROOT = Path(__file__).resolve().parents[1]
_WIDTH = 100


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of generated text; called by MkDocs for each page.

    Args:
        markdown: text of the page.
    """
    for mark, generate in _GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, generate())
    return markdown


def command_help() -> str:
    """Return the help texts of all sub-commands as Markdown."""
    return "\n\n".join(f"## anomalib-pose {name}\n\n```text\n{_help(name)}```" for name in COMMANDS)


def configuration_table() -> str:
    """Return a table of all configurations with their commands as Markdown."""
    folder = _ROOT / "configs"
    rows = ["| file | command |", "| --- | --- |"]
    for path in sorted(folder.rglob("*.yaml")):
        command = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        rows.append(f"| `{path.relative_to(_ROOT)}` | `{command}` |")
    return "\n".join(rows)


def _help(name: str) -> str:
    command = import_module(f"anomalib_pose.cli.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        f"anomalib-pose {name}",
        description=command.__doc__,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=_WIDTH),
    )
    command.add_arguments(parser)
    return parser.format_help()


_GENERATED: dict[str, Callable[[], str]] = {"{{ commands }}": command_help, "{{ configurations }}": configuration_table}
