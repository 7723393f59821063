# SPDX-License-Identifier: Apache-2.0
"""The hook registers with a tiny stand-in for torch and anomalib, in fresh interpreters without site packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[3] / "src"

FILES = {
    # like torch: load and call each entry point of the group without catching errors
    "torch.py": """
from importlib.metadata import entry_points
for entry in entry_points(group="torch.backends"):
    entry.load()()
""",
    "anomalib/__init__.py": "",
    "anomalib/data/__init__.py": """
import torch
class AnomalibDataModule: pass
class Folder(AnomalibDataModule): pass
from anomalib.data import predict
def get_datamodule(name): return globals()[name]
""",
    "anomalib/data/predict.py": "import torch",
    "anomalib/models/__init__.py": """
import torch
from anomalib.models.components import AnomalibModule
from anomalib.models.image import Padim
ALLOWED_MODULES = {"anomalib.models"}
def get_model(name): return globals()[name]
""",
    "anomalib/models/components.py": "import anomalib.data, anomalib.visualization\nclass AnomalibModule: pass",
    "anomalib/models/image.py": """
from anomalib.models.components import AnomalibModule
class Padim(AnomalibModule): pass
""",
    "anomalib/visualization/__init__.py": "import torch\nimport anomalib.visualization.image.functional",
    "anomalib/visualization/image/__init__.py": "",
    "anomalib/visualization/image/functional.py": "def visualize_image(image): return image",
    "anomalib/engine.py": "import torch\nfrom anomalib.models import AnomalibModule",
    "lazy/__init__.py": """
def __getattr__(name):
    if name == "Lazy":
        from lazy.inner import Lazy
        return Lazy
    raise AttributeError(name)
""",
    "lazy/inner.py": """
from anomalib.models import AnomalibModule
class Lazy(AnomalibModule): pass
""",
    "plugin.py": """
import anomalib_pose_autoload
anomalib_pose_autoload.install()
from anomalib.data import AnomalibDataModule, get_datamodule
from anomalib.models import AnomalibModule, get_model
class Pose(AnomalibModule): pass
class Views(AnomalibDataModule): pass
""",
    "fakes-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n",
    "fakes-1.0.dist-info/entry_points.txt": """
[torch.backends]
anomalib_pose = anomalib_pose_autoload:install
[anomalib.models]
pose = plugin:Pose
lazy = lazy:Lazy
[anomalib.datamodules]
views = plugin:Views
""",
}

CHECK = """
import sys
import anomalib.models, anomalib.data
from anomalib.models import get_model, ALLOWED_MODULES
from anomalib.data import get_datamodule
assert get_model("Pose").__module__ == "plugin" and get_datamodule("Views").__module__ == "plugin"
assert get_model("Lazy").__module__ == "lazy.inner"
assert ALLOWED_MODULES == {"anomalib.models", "plugin", "lazy", "lazy.inner"}
assert type(anomalib.models) is type(anomalib.data) is type(sys)
assert anomalib.data.__spec__.loader is anomalib.data.__loader__
assert type(anomalib.data.__loader__).__name__ == "SourceFileLoader"
from anomalib.visualization.image import functional
assert functional.visualize_reference("picture") == "picture"
"""

BROKEN = {
    "raises": "raise RuntimeError('out of order')",
    "syntax": "def register(:",
    "leaves": "raise SystemExit(1)",
    "lacks": "",
    "panics": "class Panic(BaseException): pass\ndef register(**_): raise Panic('out of order')",
}


@pytest.fixture
def site(tmp_path) -> Path:
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def run(site: Path, code: str, **variables: str) -> str:
    # -S: the environment's own torch, anomalib and entry points stay away
    environment = {"PYTHONPATH": os.pathsep.join([str(site), str(SOURCE)]), **variables}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "torch",
        "anomalib",
        "anomalib.data",
        "anomalib.data.predict",
        "anomalib.models",
        "anomalib.models.components",
        "anomalib.models.image",
        "anomalib.visualization",
        "anomalib.engine",
        "plugin",
        "lazy.inner",
        "anomalib_pose",
    ],
)
def test_every_order_of_imports_registers(site, first) -> None:
    assert not run(site, f"import {first}\n{CHECK}")


def test_the_hook_imports_nothing_and_removes_its_finder_when_done(site) -> None:
    code = """
import torch, sys
assert not [m for m in sys.modules if m.startswith(("anomalib.", "anomalib_pose."))], sys.modules
torch_again = sys.modules["anomalib_pose_autoload"].install
torch_again()
finders = lambda: [f for f in sys.meta_path if type(f).__module__ == "anomalib_pose_autoload"]
assert len(finders()) == 1
import anomalib.engine
import types
sys.modules["anomalib_pose_autoload"]._Finder.loaded(finders()[0], "anomalib.pipelines")
assert not finders()
"""
    assert not run(site, code + CHECK)


@pytest.mark.parametrize("value", ["0", "false", "off", "disabled", "no", "", " OFF ", "Disabled"])
def test_the_switch_turns_the_hook_off(site, value) -> None:
    code = """
import torch, sys, anomalib.engine, anomalib.models
assert "anomalib_pose" not in sys.modules and "plugin" not in sys.modules
assert not hasattr(anomalib.models, "Pose")
import anomalib_pose
anomalib_pose.register()
"""
    assert not run(site, code + CHECK, ANOMALIB_POSE_AUTOLOAD=value)


@pytest.mark.parametrize("value", ["1", "true", "on", "enabled", "YES"])
def test_the_switch_leaves_the_hook_on(site, value) -> None:
    assert not run(site, f"import torch\n{CHECK}", ANOMALIB_POSE_AUTOLOAD=value)


def test_an_unknown_value_of_the_switch_is_a_warning(site) -> None:
    errors = run(site, f"import torch\ntorch.entry.load()()\n{CHECK}", ANOMALIB_POSE_AUTOLOAD="never")
    assert errors.count("ANOMALIB_POSE_AUTOLOAD should be 1 or 0, got 'never'") == 1


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("first", ["torch", "anomalib.models"])
def test_broken_package_is_a_warning(site, fault, first) -> None:
    (site / "anomalib_pose").mkdir()
    (site / "anomalib_pose/__init__.py").write_text("")
    (site / "anomalib_pose/plugin.py").write_text(BROKEN[fault])
    errors = run(site, f"import {first}, torch, anomalib.models as models\nassert models.get_model('Padim')")
    assert errors.count("anomalib_pose could not be registered") == 1
    assert "ANOMALIB_POSE_AUTOLOAD=0" in errors
    assert "Traceback" not in errors


def test_missing_package_is_a_warning(site) -> None:
    (site / "anomalib_pose_autoload.py").write_text((SOURCE / "anomalib_pose_autoload.py").read_text())
    code = "import torch, anomalib.data, anomalib.models, sys\ntorch.entry.load()()"
    errors = run(site, code, PYTHONPATH=str(site))
    assert errors.count("No module named 'anomalib_pose'") == 1
    assert len(errors.splitlines()) == 1


def test_an_unusual_import_system_does_not_break_torch(site) -> None:
    code = """
import sys, importlib.metadata, csv, email, zipfile  # what reading entry points imports
import anomalib_pose_autoload, logging
sys.meta_path = tuple(sys.meta_path)
import torch
"""
    assert "AttributeError" in run(site, code)
