# SPDX-License-Identifier: Apache-2.0
"""Public names of the package: imported at their first use, and listed."""

import subprocess
import sys
import types
from importlib import import_module

import pytest

import anomalib_pose


def test_import_loads_no_heavy_package() -> None:
    code = """
import sys, anomalib_pose, anomalib_pose.plugin, anomalib_pose.cli, anomalib_pose_autoload
assert set(anomalib_pose.__all__) <= set(dir(anomalib_pose))
assert anomalib_pose.__version__
heavy = {"torch", "anomalib", "lightning", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", sorted(set(anomalib_pose._HOMES) - {"register"}))
def test_name_is_imported_from_its_home(monkeypatch, name) -> None:
    home = types.ModuleType(anomalib_pose._HOMES[name])
    setattr(home, name, object())
    monkeypatch.setitem(sys.modules, home.__name__, home)
    monkeypatch.delitem(vars(anomalib_pose), name, raising=False)
    assert getattr(anomalib_pose, name) is getattr(home, name)
    vars(anomalib_pose).pop(name)


def test_register_is_that_of_the_plugin() -> None:
    assert anomalib_pose.register is import_module("anomalib_pose.plugin").register


def test_unknown_name_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchModel"):
        anomalib_pose.NoSuchModel  # noqa: B018
