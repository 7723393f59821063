# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import pytest

from anomalib_pose import cli


@pytest.fixture(scope="session")
def run_command() -> Callable[..., None]:
    """Run a sub-command with arguments of any type."""

    def run(name: str, *arguments: object) -> None:
        cli.run_command(name, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def command_error(run_command, capsys) -> Callable[..., str]:
    """Run a sub-command that must fail with status 1 and one line; return that line."""

    def run(name: str, *arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_command(name, *arguments)
        assert end.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"anomalib-pose {name}: error: ")
        return line

    return run
