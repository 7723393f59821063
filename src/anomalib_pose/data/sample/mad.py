# SPDX-License-Identifier: Apache-2.0
"""A small data set in MAD's layout, drawn from nothing."""

import json
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from anomalib_pose.data.sample.defects import DEFECTS, View, spoil
from anomalib_pose.data.sample.toys import Toy, build_toy
from anomalib_pose.geometry import Camera, look_at, mad_lattice
from anomalib_pose.render.mesh import BakedLight, Light, bake_light

logger = logging.getLogger(__name__)

CAMERA_ANGLE_X = 0.6911111611634243
_TO_OPENGL = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
_LATTICE_VIEWS = 210
_ELEVATIONS = (math.radians(5), math.radians(75))
_DISTANCE_SPREAD = 0.02
_AIM_SPREAD = 0.02
_VIEW_TRIES = 20


def write_mad(
    out: str | Path,
    category: str,
    seed: int = 0,
    size: int = 200,
    *,
    views: int = _LATTICE_VIEWS,
    test_good: int = 10,
    test_per_defect: int = 10,
    radius: float = 3.5,
    brightness_variation: float = 0.0,
    light: Light | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a category in MAD-Sim's layout, and the true poses of its test images to ``_hidden/<category>.json``.

    The toy is built of bricks. Training views lie on MAD's lattice; test views lie anywhere on the upper hemisphere,
    a little nearer or farther, and do not aim exactly at the middle. Equal arguments give equal files.

    Args:
        out: folder of the data set; made if need be.
        category: name of the category: "car", "house" or "rocket", or any other for a toy that the seed chooses.
        seed: chooses the toy's colours and details, the test views and the defects.
        size: width and height of the images in pixels.
        views: number of training views, at most the lattice's 210; fewer are spread over it.
        test_good: number of test images without defect.
        test_per_defect: number of test images of each of the three kinds of defect.
        radius: distance of the training cameras from the toy's centre.
        brightness_variation: the light of each test image is scaled by up to this share, upwards or downwards.
        light: the light; soft daylight if None.
        overwrite: replace a category that exists.
        progress: show a progress bar.

    Returns:
        Folder of the category.

    Raises:
        FileExistsError: if the category exists and is not to be overwritten.
        ValueError: if a number is out of its range, or the category is no plain folder name.
    """
    _check(category, size, views, test_good, test_per_defect, radius, brightness_variation)
    folder = Path(out) / category
    if folder.exists() and not overwrite:
        msg = f"{folder} exists already. Choose another category or folder, or ask for it to be overwritten."
        raise FileExistsError(msg)
    folder.parent.mkdir(parents=True, exist_ok=True)
    light = light or Light()
    toy = build_toy(category, seed)
    baked = bake_light(toy.mesh, light)
    total = views + test_good + test_per_defect * len(DEFECTS)
    with _finished_or_nothing(folder) as partial, _one_thread(), Progress(disable=not progress, transient=True) as bar:
        task = bar.add_task(f"Drawing {category}", total=total)

        def step() -> None:
            bar.advance(task)

        _write_training(partial, toy, light, baked, _lattice(views, radius), size, step)
        tester = _Tester(partial, toy, light, baked, size, radius, brightness_variation)
        images = tester.write(test_good, test_per_defect, np.random.default_rng([seed, 1]), step)
        hidden = {"category": category, "seed": seed, "radius": radius, "images": images}
    _write_text(folder.parent / "_hidden" / f"{category}.json", json.dumps(hidden, indent=1))
    logger.info("Wrote %d images of %s to %s.", total, category, folder)
    return folder


def opengl_matrix(camera_to_world: Tensor) -> list[list[float]]:
    """A pose with OpenCV axes (4, 4) as MAD's files store it: with OpenGL axes."""
    matrix: list[list[float]] = (camera_to_world.double() * _TO_OPENGL).tolist()
    return matrix


def _check(
    category: str, size: int, views: int, test_good: int, test_per_defect: int, radius: float, variation: float
) -> None:
    if not category or category != Path(category).name or category.startswith(("_", ".")):
        msg = f"A category is a plain folder name that does not begin with '_' or '.', got {category!r}."
        raise ValueError(msg)
    if size < 16 or not 1 <= views <= _LATTICE_VIEWS or test_good < 0 or test_per_defect < 0:
        msg = (
            f"size has to be 16 or more, views 1 to {_LATTICE_VIEWS}, test counts 0 or more; got size {size}, "
            f"views {views}, test_good {test_good}, test_per_defect {test_per_defect}."
        )
        raise ValueError(msg)
    if radius < 2 or not 0 <= variation < 1:
        msg = f"radius has to be 2 or more and brightness_variation in [0, 1), got {radius} and {variation}."
        raise ValueError(msg)


def _lattice(views: int, radius: float) -> Tensor:
    chosen = torch.linspace(0, _LATTICE_VIEWS - 1, views).round().long()
    return mad_lattice(radius).double()[chosen]


def _write_training(
    folder: Path, toy: Toy, light: Light, baked: BakedLight, poses: Tensor, size: int, step: Callable[[], None]
) -> None:
    frames = []
    for number, pose in enumerate(poses):
        name = f"train/good/{number}.png"
        camera = Camera.from_fov(pose, CAMERA_ANGLE_X, size, size)
        _write_image(folder / name, View.of(toy, camera, light, baked).image)
        frames.append({"file_path": f"./{name}", "transform_matrix": opengl_matrix(pose)})
        step()
    transforms = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
    _write_text(folder / "transforms.json", json.dumps(transforms, indent=1))


class _Tester:
    """Draws test images at random poses."""

    def __init__(
        self, folder: Path, toy: Toy, light: Light, baked: BakedLight, size: int, radius: float, variation: float
    ) -> None:
        self.folder, self.toy, self.light, self.baked = folder, toy, light, baked
        self.size, self.radius, self.variation = size, radius, variation
        self.relit: dict[int, BakedLight] = {}

    def write(self, good: int, per_defect: int, rng: np.random.Generator, step: Callable[[], None]) -> list[dict]:
        """Write all test images and masks; returns what is known about each image."""
        images = []
        for kind in ("good", *DEFECTS):
            for number in range(good if kind == "good" else per_defect):
                images.append(self._one(kind, number, rng))
                step()
        return images

    def _one(self, kind: str, number: int, rng: np.random.Generator) -> dict[str, Any]:
        view, image, mask = self._draw(kind, rng)
        file = f"test/{kind}/{number}.png"
        _write_image(self.folder / file, image)
        if kind != "good":
            _write_image(self.folder / "ground_truth" / kind / f"{number}_mask.png", mask.astype(np.uint8) * 255)
        return {
            "file": file,
            "transform_matrix": opengl_matrix(view.camera.camera_to_world),
            "kind": kind,
            "brightness": view.light.intensity / self.light.intensity,
            "area_px": int(mask.sum()),
        }

    def _draw(self, kind: str, rng: np.random.Generator) -> tuple[View, np.ndarray, np.ndarray]:
        for _ in range(_VIEW_TRIES):
            camera = Camera.from_fov(_test_pose(self.radius, rng), CAMERA_ANGLE_X, self.size, self.size)
            brightness = 1 + self.variation * rng.uniform(-1, 1)
            light = replace(self.light, intensity=self.light.intensity * brightness)
            view = View.of(self.toy, camera, light, self.baked, self.relit)
            if kind == "good":
                return view, view.image, np.zeros((self.size, self.size), bool)
            spoiled = spoil(view, kind, rng)
            if spoiled is not None:
                return view, *spoiled
        msg = f"No place for a defect of the kind {kind} was found at {self.size} px; draw larger images."
        raise ValueError(msg)


def _test_pose(radius: float, rng: np.random.Generator) -> Tensor:
    """Random pose (4, 4) on the upper hemisphere, float64."""
    low, high = _ELEVATIONS
    elevation = math.asin(rng.uniform(math.sin(low), math.sin(high)))
    azimuth = rng.uniform(0, 2 * math.pi)
    distance = radius * rng.uniform(1 - _DISTANCE_SPREAD, 1 + _DISTANCE_SPREAD)
    direction = (
        math.cos(elevation) * math.cos(azimuth),
        math.cos(elevation) * math.sin(azimuth),
        math.sin(elevation),
    )
    eye = distance * torch.tensor(direction, dtype=torch.float64)
    target = torch.from_numpy(rng.uniform(-_AIM_SPREAD, _AIM_SPREAD, 3))
    return look_at(eye, target, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


@contextmanager
def _finished_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of ``folder`` at the end, or vanishes if there is an error."""
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    partial.chmod(0o755)
    try:
        yield partial
        old = partial.with_name(f"{partial.name}-old")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch's operations here are too small to gain from threads, and on a busy machine they lose much by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
