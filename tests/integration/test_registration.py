# SPDX-License-Identifier: Apache-2.0
"""Stock anomalib finds the classes that installed distributions name, in every order of imports.

Each test starts a fresh interpreter beside a folder with distributions as an installer leaves them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"

MODEL = """
from torch import nn
from anomalib import LearningType
from anomalib.models.components import AnomalibModule

class {name}(AnomalibModule):
    trainer_arguments = {{}}
    learning_type = LearningType.ONE_CLASS

    def __init__(self, width: int = 3, visualizer: bool = True) -> None:
        super().__init__(visualizer=visualizer)
        self.model = nn.Linear(width, 1)
"""
DATA = """
from anomalib.data import AnomalibDataModule, PredictDataset

class {name}(AnomalibDataModule):
    def __init__(self, size: int = 7) -> None:
        super().__init__(train_batch_size=1, eval_batch_size=1, num_workers=0)
        self.size = size

    def _setup(self, stage: str | None = None) -> None:
        raise NotImplementedError
"""
EXPORTS = """
def __getattr__(name):
    if name == "TinyPose":
        from tiny_plugin.models import TinyPose
        return TinyPose
    raise AttributeError(name)
"""
ENTRIES = """
[anomalib.models]
tiny = tiny_plugin:TinyPose
missing = tiny_plugin.models:NoSuchModel
no_model = tiny_plugin.data:TinyData
thief = thief_of_models:PADIM

[anomalib.datamodules]
tiny = tiny_plugin.data:TinyData
broken = broken_plugin:Data
leaver = leaving_plugin:Data
thief = thief_of_data:MVTecAD
"""
HOOK = "[torch.backends]\nanomalib_pose = anomalib_pose_autoload:install\n"

FINDS = """
import sys
from anomalib.models import get_model, list_models
assert type(get_model({"class_path": "tiny_plugin.models.TinyPose"})).__name__ == "TinyPose"
assert type(get_model({"class_path": "tiny_plugin.TinyPose"})).__name__ == "TinyPose"
assert get_model({"class_path": "TinyPose", "init_args": {"width": 5}}).model.in_features == 5
assert get_model("tiny_pose", width=4).model.in_features == 4
assert "tiny_pose" in list_models() and "TinyPose" in list_models("pascal")
assert type(get_model("padim", pre_trained=False)).__module__.startswith("anomalib.models.")
from anomalib.data import get_datamodule
assert get_datamodule({"class_path": "TinyData", "init_args": {"size": 9}}).size == 9
assert get_datamodule({"data": {"class_path": "tiny_plugin.data.TinyData"}}).size == 7
from anomalib.visualization.image.functional import get_visualize_function
assert get_visualize_function("reference")
assert "thief_of_models" not in sys.modules and "thief_of_data" not in sys.modules
"""

# the stock console script's own lines, called several times
STOCK = """
import contextlib, io, sys
from anomalib.cli.cli import main

def call(*arguments):
    sys.argv = ["anomalib", *arguments]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()

"""


def install(site: Path, name: str, entry_points: str) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A good plug-in, bad ones, and the hook."""
    site = tmp_path_factory.mktemp("site")
    (site / "tiny_plugin").mkdir()
    for path, text in {
        "tiny_plugin/__init__.py": EXPORTS,
        "tiny_plugin/models.py": MODEL.format(name="TinyPose"),
        "tiny_plugin/data.py": DATA.format(name="TinyData"),
        "broken_plugin.py": "this is no Python\n",
        "leaving_plugin.py": "raise SystemExit(3)\n",
        "thief_of_models.py": MODEL.format(name="PADIM"),
        "thief_of_data.py": DATA.format(name="MVTecAD"),
    }.items():
        (site / path).write_text(text)
    install(site, "tiny_plugin", ENTRIES)
    install(site, "the_hook", HOOK)
    return site


def run(site: Path, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    """Run the interpreter with the site folder before the project's sources on its path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANOMALIB_POSE_", "TORCH_DEVICE_"))}
    path = [str(site), str(SOURCE), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment | variables,
        cwd=cwd or site,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check(site: Path, code: str, **variables: str) -> str:
    """Run code that must succeed, and return what it wrote to stderr."""
    done = run(site, "-c", code, **variables)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "first",
    [
        "anomalib.models",  # imports torch while it is half imported itself
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "torch",
                "anomalib",
                "anomalib.data",
                "anomalib.engine",
                "anomalib.models.components",
                "anomalib.models.image",
                "anomalib.visualization",
                "anomalib.cli",
                "tiny_plugin.models",
                "tiny_plugin.data",
            )
        ),
    ],
)
def test_every_order_of_imports_registers_the_classes(site, first) -> None:
    errors = check(site, f"import {first}\n{FINDS}")

    for name, reason in {
        "missing = tiny_plugin.models:NoSuchModel": "no attribute 'NoSuchModel'",
        "no_model = tiny_plugin.data:TinyData": "expected a subclass of anomalib.models.AnomalibModule",
        "thief = thief_of_models:PADIM": "the name is taken by anomalib.models.image.padim.lightning_model.Padim",
        "broken = broken_plugin:Data": "SyntaxError",
        "leaver = leaving_plugin:Data": "SystemExit: 3",
        "thief = thief_of_data:MVTecAD": "the name is taken by anomalib.data.datamodules.image.mvtecad.MVTecAD",
    }.items():
        lines = [line for line in errors.splitlines() if f"'{name}'" in line]
        assert len(lines) == 1, errors
        assert reason in lines[0]
        assert "tiny_plugin" in lines[0]
    assert "'tiny = " not in errors


def test_stock_command_line_knows_short_names(site) -> None:
    check(
        site,
        STOCK
        + """
for command in ("train", "test", "export"):
    text = call(command, "--model", "TinyPose", "--model.width", "6", "--data", "TinyData", "--print_config")
    assert "class_path: tiny_plugin.TinyPose" in text and "width: 6" in text, text
    assert "class_path: tiny_plugin.data.TinyData" in text and "size: 7" in text, text
text = call("train", "--model", "Padim", "--data", "MVTecAD", "--print_config")
assert "class_path: anomalib.models.Padim" in text and "class_path: anomalib.data.MVTecAD" in text, text
assert "--model.width WIDTH" in call("train", "--model.help", "TinyPose")
assert "tiny_plugin.TinyPose" in call("train", "--help", "-vv")

from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator
grid = {"seed": 1, "model": {"class_path": "TinyPose"}, "data": {"class_path": "TinyData", "init_args": {"size": 2}}}
(job,) = BenchmarkJobGenerator("cpu").generate_jobs(grid, None)
assert type(job.model).__name__ == "TinyPose" and job.datamodule.size == 2

# one table for models whose settings and metrics differ
table = job.collect([{"model": "A", "seconds": 1.0}, {"model": "B", "coreset": 0.1}])
assert list(table.columns) == ["model", "seconds", "coreset"] and table["model"].tolist() == ["A", "B"], table
assert table.isna().to_numpy().tolist() == [[False, False, True], [False, True, False]], table
""",
    )


@pytest.mark.slow
def test_the_hook_can_be_switched_off_and_a_later_registration_is_complete(site) -> None:
    errors = check(
        site,
        """
import sys
from anomalib.models import list_models
import anomalib.data
assert "tiny_plugin" not in sys.modules and "anomalib_pose.plugin" not in sys.modules
assert "tiny_pose" not in list_models()

import anomalib_pose_autoload, os
del os.environ["ANOMALIB_POSE_AUTOLOAD"]
for _ in range(3):
    anomalib_pose_autoload.install()
"""
        + FINDS
        + """
import anomalib.models, anomalib_pose
model, allowed = anomalib.models.TinyPose, set(anomalib.models.ALLOWED_MODULES)
for _ in range(3):
    anomalib_pose.register()
assert anomalib.models.TinyPose is model and anomalib.models.ALLOWED_MODULES == allowed
assert {"tiny_plugin", "tiny_plugin.models"} <= allowed and "broken_plugin" not in allowed
assert type(anomalib.models) is type(sys)

import numpy as np, torch
from anomalib.data import ImageItem
from anomalib.visualization.image.item_visualizer import visualize_image_item
from dataclasses import dataclass
@dataclass
class Item(ImageItem):
    reference: torch.Tensor | None = None
reference = torch.zeros(3, 8, 8)
reference[0] = 1.004  # a renderer overshoots
item = Item(image=torch.zeros(3, 8, 8), reference=reference)
panel = visualize_image_item(item, fields=["reference"], field_size=(16, 16), text_config={"enable": False})
assert (np.asarray(panel)[8, 8] == [255, 0, 0]).all(), np.asarray(panel)[8, 8]
""",
        ANOMALIB_POSE_AUTOLOAD="0",
    )
    assert errors.count("broken_plugin:Data") == 1


def test_the_own_command_works_without_the_hook_and_writes_no_files(site, tmp_path) -> None:
    arguments = ("train", "--model", "TinyPose", "--data", "TinyData", "--print_config")
    done = run(site, "-m", "anomalib_pose.cli", *arguments, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode == 0, done.stderr
    assert "class_path: tiny_plugin.TinyPose" in done.stdout
    assert "class_path: tiny_plugin.data.TinyData" in done.stdout
    assert not list(tmp_path.iterdir())
