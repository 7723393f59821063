# SPDX-License-Identifier: Apache-2.0
"""Fit every model for a few steps, predict and localize, with the versions that are installed.

    make test-floors

runs this file in an environment with the lowest versions that pyproject.toml allows. It needs the extras colmap, mesh
and clip, and no test tools. With the extra openvino it also exports a model. The short names come from the installed
entry points, as for a user.
"""

import json
import logging
import sys
import tempfile
from contextlib import chdir
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from anomalib.cli import AnomalibCLI

from anomalib_pose.cli import run_command

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

logger = logging.getLogger("floors")

_PACKAGES = ("torch", "torchvision", "lightning", "numpy", "numba", "kornia", "timm", "open-clip-torch", "openvino")
_TRAINER = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
_SCENE = {"steps": 5, "starts": 1, "bank_spacing": 40.0, "refiner_steps": 2}
_TOY = ["--category", "toy", "--size", "32", "--views", "24", "--test-good", "2", "--test-per-defect", "1"]


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    logger.info("Versions: %s", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        run_command("sample", ["mad", "mad", *_TOY])
        run_command("sample", ["mip", "mip", *_TOY, "--lights", "2", "--colmap"])
        run_command("sample", ["chairs", "chairs", "--shapes", "3", "--queries", "2", "--size", "128", "--views", "5"])
        clouds = ["--categories", "ring", "peg", "--size", "64", "--train", "0", "--test-per-defect", "1"]
        run_command("sample", ["clouds", "clouds", *clouds])
        for model, data in (("SplatPose", "MAD"), ("OmniposeAD", "MAD"), ("PIAD", "MIP")):
            _fit_scene_model(model, data)
        _fit_looking3d()
        _fit_point_ad()
    logger.info("All models were fitted, and predicted.")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _fit_scene_model(model: str, data: str) -> None:
    """Train, test, predict and localize with a scene model; export SplatPose."""
    arguments = _data_arguments(data, root=data.lower(), category="toy", image_size=32, num_workers=0)
    settings = _SCENE | ({} if model == "OmniposeAD" else {"max_gaussians": 50})
    arguments += _model_arguments(model, **settings)
    checkpoint = _train_and_predict(model, arguments)
    photograph = sorted(Path("mad/toy/test/good").iterdir())[0]
    intrinsics = [] if data == "MAD" else ["--intrinsics", "40", "40", "16", "16"]
    run_command("localize", ["--ckpt_path", str(checkpoint), "--data", str(photograph), *intrinsics])
    assert len(json.loads(Path("poses.json").read_text())["images"]) == 1
    if model == "SplatPose" and find_spec("openvino") is not None:
        small = json.dumps({"views": 12, "size": 64, "starts": 1, "neighbours": 1, "steps": [1, 1, 1]})
        export = ["export", "--model", model, "--ckpt_path", str(checkpoint), "--export_root", "exported"]
        AnomalibCLI([*export, "--export_type", "openvino", "--onnx_kwargs", small])
        assert list(Path("exported").rglob("model.xml"))


def _fit_looking3d() -> None:
    arguments = _data_arguments("BrokenChairs", root="chairs", num_workers=0, train_views=2, eval_views=2)
    _train_and_predict("Looking3D", [*arguments, *_model_arguments("Looking3D"), "--trainer.max_epochs", "1"])


def _fit_point_ad() -> None:
    from small_clip import write_small_clip

    clouds = {"root": "clouds", "category": "ring", "train_category": "peg", "views": 5, "size": 64}
    model = {"clip_model": str(write_small_clip(Path.cwd())), "pretrained": "", "deep_sets": 2}
    arguments = _data_arguments("MVTec3DRendered", **clouds, num_workers=0) + _model_arguments("PointAD", **model)
    _train_and_predict("PointAD", [*arguments, "--trainer.max_epochs", "1"])


def _train_and_predict(model: str, arguments: list[str]) -> Path:
    """Train and test, then predict from the checkpoint; return the checkpoint."""
    AnomalibCLI(["train", *arguments, *_TRAINER])
    checkpoint = next(path for path in Path("results", model).rglob("model.ckpt") if "latest" not in path.parts)
    AnomalibCLI(["predict", *arguments, *_TRAINER, "--ckpt_path", str(checkpoint)])
    logger.info("%s was fitted and has predicted.", model)
    return checkpoint


def _data_arguments(name: str, **values: object) -> list[str]:
    return ["--data", name, *(word for key, value in values.items() for word in (f"--data.{key}", str(value)))]


def _model_arguments(name: str, **values: object) -> list[str]:
    return ["--model", name, *(word for key, value in values.items() for word in (f"--model.{key}", str(value)))]


if __name__ == "__main__":
    main()
