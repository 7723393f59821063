# SPDX-License-Identifier: Apache-2.0
"""One photograph in many forms gets one answer through every entry point, or one refusal that names the file."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.engine import Engine
from PIL import Image

from anomalib_pose import cli
from anomalib_pose.data import PosedFolder
from anomalib_pose.data.files import opengl_matrix
from anomalib_pose.geometry import view_sphere
from anomalib_pose.models import PIAD, Looking3D, SplatPose, estimate_pose
from bad_inputs import Answer, Photograph, photographs, write_photographs
from sample_models import SIZE, TRAINING, make_fitted, save_checkpoint
from sample_scenes import make_toy

MODELS = {"SplatPose": SplatPose, "PIAD": PIAD}
LIMITS = {"_image_threshold": 2.0, "image_min": 0.0, "image_max": 10.0, "_pixel_threshold": 2.0, "pixel_min": 0.0,
          "pixel_max": 10.0}  # fmt: skip
POSE = view_sphere(12, 3.1, 1.0, -1.0, azimuth_offset=0.4)[4]


@dataclass(frozen=True)
class Fitted:
    """A fitted model, its checkpoint, the folder of its training images, and the query as pixels and mask."""

    model: SplatPose | PIAD
    checkpoint: Path
    root: Path
    rgb: np.ndarray
    mask: np.ndarray


def make_engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, logger=False, devices=1, accelerator="cpu", enable_progress_bar=False)


def pixels(values: torch.Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * 255).round().byte().numpy()


@pytest.fixture(scope="module", params=[pytest.param("SplatPose"), pytest.param("PIAD", marks=pytest.mark.slow)])
def fitted(request, tmp_path_factory) -> Fitted:
    root = tmp_path_factory.mktemp(request.param)
    model = make_fitted(MODELS[request.param], memory_patches=0, surface_views=0, visualizer=False)
    for name, value in LIMITS.items():
        getattr(model.post_processor, name).fill_(value)
    frames = []
    for index in range(0, 40, 4):
        camera = TRAINING[index]
        name = f"train/{index}.png"
        (root / "train").mkdir(exist_ok=True)
        Image.fromarray(pixels(make_toy().render(camera, torch.ones(3)).rgb)).save(root / name)
        frames.append({"file_path": name, "transform_matrix": opengl_matrix(camera.camera_to_world)})
    intrinsics = {"fl_x": float(TRAINING.K[0, 0, 0]), "fl_y": float(TRAINING.K[0, 1, 1]), "w": SIZE, "h": SIZE}
    (root / "transforms.json").write_text(json.dumps({**intrinsics, "frames": frames}))
    output = make_toy().render(TRAINING[0].with_pose(POSE), torch.ones(3))
    checkpoint = save_checkpoint(model, root / "model.ckpt")
    return Fitted(model, checkpoint, root, pixels(output.rgb), pixels(output.alpha))


def answers_of(batches: list) -> dict[str, Answer]:
    return {
        Path(path).name: Answer(
            float(batch.pose_confidence[index]),
            batch.estimated_camera_to_world[index].double().numpy(),
            float(batch.pred_score[index]),
            bool(batch.pred_label[index]),
        )
        for batch in batches
        for index, path in enumerate(batch.image_path)
    }


def by_folder(fitted: Fitted, folder: Path, work: Path) -> dict[str, Answer]:
    """``anomalib predict --data FOLDER``, and ``Engine.predict(data_path=...)``."""
    return answers_of(make_engine(work).predict(fitted.model, data_path=folder))


def by_datamodule(fitted: Fitted, folder: Path, work: Path) -> dict[str, Answer]:
    """``anomalib predict --data PosedFolder``."""
    data = PosedFolder(fitted.root, query_dir=folder, num_workers=0)
    return answers_of(make_engine(work).predict(fitted.model, datamodule=data))


def by_localize(fitted: Fitted, folder: Path, work: Path) -> dict[str, Answer]:
    """``anomalib-pose localize``."""
    output = work / "poses.json"
    arguments = ["--ckpt_path", fitted.checkpoint, "--data", folder, "--output", output]
    cli.run_command("localize", [str(argument) for argument in arguments])
    entries = json.loads(output.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["images"]
    for entry in entries:
        if entry.get("error"):
            raise ValueError(entry["error"])
    return {
        Path(entry["file"]).name: Answer(entry["confidence"], np.array(entry["camera_to_world"])) for entry in entries
    }


def by_estimate_pose(fitted: Fitted, folder: Path, work: Path) -> dict[str, Answer]:
    """``estimate_pose``."""
    del work
    estimates = {path.name: estimate_pose(fitted.model, path) for path in sorted(folder.iterdir())}
    return {
        name: Answer(estimate.confidence, estimate.camera.camera_to_world.double().numpy())
        for name, estimate in estimates.items()
    }


ENTRY_POINTS: dict[str, Callable[[Fitted, Path, Path], dict[str, Answer]]] = {
    "folder": by_folder,
    "datamodule": by_datamodule,
    "localize": by_localize,
    "estimate_pose": by_estimate_pose,
}


@pytest.fixture(scope="module", params=ENTRY_POINTS)
def answers(request, fitted, tmp_path_factory) -> dict[str, Answer]:
    """Answers of one entry point about all photographs that have an answer, which lie in one folder."""
    folder = tmp_path_factory.mktemp("photographs")
    for photograph in photographs("same", "no verdict"):
        photograph.write(folder / photograph.name, fitted.rgb, fitted.mask)
    return ENTRY_POINTS[request.param](fitted, folder, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def plain(fitted, tmp_path_factory) -> Answer:
    """Answer of the datamodule about the plain file."""
    folder = tmp_path_factory.mktemp("plain")
    Image.fromarray(fitted.rgb).save(folder / "plain.png")
    (answer,) = by_datamodule(fitted, folder, tmp_path_factory.mktemp("work")).values()
    assert answer.confidence > 0.7
    assert not answer.label
    return answer


@pytest.mark.parametrize("photograph", photographs("same"), ids=lambda photograph: photograph.name)
def test_the_form_of_a_photograph_does_not_change_the_answer(answers, plain, photograph):
    answer, tolerance = answers[photograph.name], photograph.tolerance
    assert answer.confidence == pytest.approx(plain.confidence, abs=3 * tolerance)
    np.testing.assert_allclose(answer.camera_to_world, plain.camera_to_world, atol=10 * tolerance)
    if answer.score is not None:
        assert answer.score == pytest.approx(plain.score, abs=tolerance)
        assert answer.label == plain.label


@pytest.mark.parametrize("photograph", photographs("no verdict"), ids=lambda photograph: photograph.name)
def test_a_photograph_without_content_gets_no_verdict(answers, photograph):
    answer = answers[photograph.name]
    assert answer.confidence == 0
    assert np.isfinite(answer.camera_to_world).all()
    if answer.score is not None:
        assert answer.score == 1
        assert answer.label


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("photograph", photographs("refused"), ids=lambda photograph: photograph.name)
def test_an_unusable_photograph_is_refused_by_name(
    fitted, photograph: Photograph, entry_point: str, tmp_path, caplog, capsys
):
    folder = write_photographs(tmp_path / "photographs", [photograph], fitted.rgb, fitted.mask)[photograph.name]
    (tmp_path / "work").mkdir()
    with caplog.at_level(logging.ERROR), pytest.raises((ValueError, OSError, SystemExit)) as refusal:
        ENTRY_POINTS[entry_point](fitted, folder, tmp_path / "work")
    message = capsys.readouterr().err if isinstance(refusal.value, SystemExit) else str(refusal.value)
    assert photograph.name in message
    assert len(message.strip().splitlines()) == 1
    if photograph.reason:
        assert re.search(photograph.reason, message)


@pytest.fixture(scope="module")
def looking3d(tmp_path_factory) -> Looking3D:
    """A model with random weights, and a box as its reference."""
    trimesh = pytest.importorskip("trimesh", reason="the extra mesh is not installed")
    path = tmp_path_factory.mktemp("mesh") / "box.obj"
    trimesh.creation.box((1.0, 0.6, 0.4)).export(path)
    torch.manual_seed(0)
    return Looking3D(reference=str(path), image_size=128, topk=20, visualizer=False)


def labels_by_looking3d(model: Looking3D, folder: Path, work: Path) -> dict[str, Answer]:
    batches = make_engine(work).predict(model, data_path=folder)
    return {
        Path(path).name: Answer(score=float(batch.pred_score[index]), label=bool(batch.pred_label[index]))
        for batch in batches
        for index, path in enumerate(batch.image_path)
    }


@pytest.fixture(scope="module")
def looking3d_answers(looking3d, fitted, tmp_path_factory) -> dict[str, Answer]:
    folder = tmp_path_factory.mktemp("photographs")
    for photograph in photographs("same"):
        photograph.write(folder / photograph.name, fitted.rgb, fitted.mask)
    return labels_by_looking3d(looking3d, folder, tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize("photograph", photographs("same"), ids=lambda photograph: photograph.name)
def test_looking3d_gives_one_answer_to_all_forms(looking3d_answers, photograph):
    tolerance = max(photograph.tolerance, 2e-4)
    assert looking3d_answers[photograph.name].score == pytest.approx(
        looking3d_answers["plain.png"].score, abs=tolerance
    )


@pytest.mark.parametrize("photograph", photographs("no verdict"), ids=lambda photograph: photograph.name)
def test_looking3d_never_calls_a_photograph_without_content_good(looking3d, fitted, photograph, tmp_path):
    folder = write_photographs(tmp_path / "photographs", [photograph], fitted.rgb, fitted.mask)[photograph.name]
    try:
        (answer,) = labels_by_looking3d(looking3d, folder, tmp_path / "work").values()
    except ValueError as refusal:  # the background is not white
        assert photograph.name in str(refusal)
    else:
        assert answer == Answer(score=1.0, label=True)


@pytest.mark.parametrize(
    "photograph",
    [photograph for photograph in photographs("refused") if photograph.reason == ""],
    ids=lambda photograph: photograph.name,
)
def test_looking3d_refuses_an_unusable_photograph_by_name(looking3d, fitted, photograph, tmp_path):
    folder = write_photographs(tmp_path / "photographs", [photograph], fitted.rgb, fitted.mask)[photograph.name]
    with pytest.raises((ValueError, OSError)) as refusal:
        labels_by_looking3d(looking3d, folder, tmp_path / "work")
    assert photograph.name in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
