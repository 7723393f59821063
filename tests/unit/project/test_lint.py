# SPDX-License-Identifier: Apache-2.0
"""The gates of ``make lint`` close: an undefined name is an error for ruff and for mypy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEADER = '# SPDX-License-Identifier: Apache-2.0\n"""Adds numbers."""\n\n\n'
FUNCTION = 'def add(a: int, b: int) -> int:\n    """Add two numbers."""\n    return a + {name}\n'


@pytest.mark.parametrize(("name", "accepted"), [("b", True), ("undefined_name", False)])
@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_an_undefined_name_fails(tool, name, accepted, tmp_path):
    module = tmp_path / "add.py"
    module.write_text(HEADER + FUNCTION.format(name=name))
    config = str(ROOT / "pyproject.toml")
    command = {
        "ruff": ["ruff", "check", "--no-cache", "--config", config, "--ignore", "ARG,INP", str(module)],
        "mypy": ["mypy", "--config-file", config, "--cache-dir", str(tmp_path / "cache"), str(module)],
    }[tool]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode == 0) == accepted, done.stdout + done.stderr
    if not accepted:
        assert "undefined_name" in done.stdout


NORM = (
    HEADER.replace("Adds numbers", "Norms")[:-1]
    + """\
from jaxtyping import Float
from torch import Tensor


def norm(vectors: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    \"\"\"Lengths.\"\"\"
    return vectors.norm(dim=1)
"""
)


def test_shape_strings_of_one_word_are_accepted(tmp_path):
    module = tmp_path / "norm.py"
    module.write_text(NORM)
    command = ["ruff", "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), "--ignore", "INP", str(module)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
