# SPDX-License-Identifier: Apache-2.0
"""One warning names a version of anomalib that this package is not tested with."""

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from anomalib_pose.plugin import host_version

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("installed", "warnings"),
    [
        ("2.7.0", 0),
        ("2.7", 0),
        ("2.7.9.dev1+g12", 0),
        ("2.7.0rc1", 0),
        ("2.6.9", 1),
        ("2.8.0", 1),
        ("3.0", 1),
        ("2.70.1", 1),
        (None, 0),
    ],
)
def test_other_versions_are_named_once(installed, warnings, monkeypatch, caplog):
    def version(_name: str) -> str:
        if installed is None:
            raise PackageNotFoundError
        return installed

    monkeypatch.setattr(host_version, "version", version)
    host_version.warn_about_host_version.cache_clear()
    for _ in range(2):
        host_version.warn_about_host_version()
    host_version.warn_about_host_version.cache_clear()
    assert caplog.text.count("is tested with anomalib 2.7") == warnings


def test_the_range_is_that_of_the_dependency():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    minor = host_version.SUPPORTED
    assert f"anomalib>={minor},<{host_version._next_minor(minor)}" in dependencies
