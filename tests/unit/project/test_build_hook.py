# SPDX-License-Identifier: Apache-2.0
"""Editable wheels hold the import hook, because a link into a checkout that moves would break ``import torch``."""

import importlib.util
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[3]
INTERFACE = "hatchling.builders.hooks.plugin.interface"


@pytest.fixture
def build_hook(monkeypatch):
    """The module ``hatch_build.py``, with a stand-in for hatchling."""
    interface = ModuleType(INTERFACE)
    interface.BuildHookInterface = object
    parts = INTERFACE.split(".")
    for count in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(parts[count - 1]))
    monkeypatch.setitem(sys.modules, INTERFACE, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("version", "copied"), [("editable", True), ("standard", False)])
def test_editable_wheels_hold_the_import_hook(build_hook, version, copied):
    data = {"force_include_editable": {}}
    build_hook.EditableHook.initialize(SimpleNamespace(root=str(ROOT)), version, data)
    files = {str(ROOT / "src" / "anomalib_pose_autoload.py"): "anomalib_pose_autoload.py"}
    assert data["force_include_editable"] == (files if copied else {})
    assert all(Path(file).is_file() for file in data["force_include_editable"])


def test_the_hook_is_part_of_every_wheel():
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert "custom" in targets["wheel"]["hooks"]
    assert "src/anomalib_pose_autoload.py" in targets["wheel"]["only-include"]


def test_hatchling_builds_the_editable_wheel(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (file,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"])
    with zipfile.ZipFile(file) as archive:
        assert "anomalib_pose_autoload.py" in archive.namelist()
