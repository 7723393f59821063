# SPDX-License-Identifier: Apache-2.0
"""Weights and inputs that the references' numbers were computed with, made by formula."""

import importlib.util
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def formula(shared) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_formula", shared / "reference" / "golden_formula.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
