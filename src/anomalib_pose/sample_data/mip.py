# SPDX-License-Identifier: Apache-2.0
"""Writer of a small rendered data set in MIP's layouts: queries in other light than the training views."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from anomalib_pose.data.files import new_category, write_json
from anomalib_pose.geometry import Camera
from anomalib_pose.render.mesh_lighting import Light
from anomalib_pose.sample_data.colmap import write_model
from anomalib_pose.sample_data.defects import DEFECTS
from anomalib_pose.sample_data.toys import build_toy
from anomalib_pose.sample_data.views import (
    LATTICE_VIEWS,
    Studio,
    check_arguments,
    single_torch_thread,
    training_poses,
    write_training_views,
    write_transforms,
)

logger = logging.getLogger(__name__)

_Color = tuple[float, float, float]
# Rotation of the lamps about the vertical axis in degrees; factors on the colors; factor on the intensity.
_LIGHT_CHANGES: tuple[tuple[float, _Color, float], ...] = (
    (110.0, (1.25, 1.0, 0.68), 0.8),
    (-125.0, (1.0, 1.0, 1.0), 1.3),
    (180.0, (0.85, 0.97, 1.2), 0.6),
    (55.0, (1.35, 0.95, 0.55), 1.1),
    (-60.0, (1.0, 1.0, 1.0), 0.45),
)
_REAL_ASPECT = 3 / 4


def write_mip(
    out: str | Path,
    category: str,
    seed: int = 0,
    size: int = 200,
    *,
    views: int = LATTICE_VIEWS,
    lights: int = 3,
    test_good: int = 5,
    test_per_defect: int = 9,
    radius: float = 3.5,
    colmap: bool = False,
    light: Light | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Write a category in the layout of MIP or MIP-Real, and true poses of its queries to ``_hidden/<category>.json``.

    Toy, training views and defects are those of ``write_mad``. Light 1 is the light of the training views. The lamps of
    the other lights have other directions, colors and intensities. Equal arguments give equal files.

    Args:
        out: folder of the data set; created if it does not exist.
        category: name of the category: "car", "house", "rocket", or any other name for a toy that the seed selects.
        seed: seed of the toy's colors and details, of the test views and of the defects.
        size: longer side of the images in pixels.
        views: number of training views, at most the 210 of the lattice; fewer views are spread over the lattice.
        lights: number of lights of the queries, 1 to 6.
        test_good: number of test images without defect in each light. They are in the folders ``good_1``, ``good_2``
            and so on of the synthetic layout, or in the folder ``good`` of MIP-Real's layout.
        test_per_defect: number of test images of each of the three kinds of defect; the lights take turns.
        radius: distance of the training cameras from the toy's center.
        colmap: write MIP-Real's layout: JPEG images of 4:3, and a COLMAP model as text. The masks are then exact except
            for JPEG's losses.
        light: light of the training views; ``Light()``, soft daylight, if None.
        overwrite: replace an existing category.
        progress: show a progress bar.

    Returns:
        Folder of the category.

    Raises:
        FileExistsError: if the category exists and ``overwrite`` is False.
        ValueError: if a number is out of its range, or the category is not a plain folder name.
    """
    check_arguments(size, views, test_good, test_per_defect, radius)
    training_light = light or Light()
    all_lights = [_nth_light(training_light, number) for number in range(_check_lights(lights))]
    root = Path(out)
    total = views + test_good * lights + test_per_defect * len(DEFECTS)
    height = round(size * _REAL_ASPECT) if colmap else size
    with (
        new_category(root, category, overwrite=overwrite) as folder,
        single_torch_thread(),
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"Rendering {category}", total=total)
        toy = build_toy(category, seed)
        studios = [Studio(toy, studio_light, size, height, radius) for studio_light in all_lights]
        write_training = _write_real_views if colmap else _write_synthetic_views
        write_training(folder, studios[0], views, seed, lambda: bar.advance(task))
        images = []
        rng = np.random.default_rng([seed, 1])
        for kind, file, number in _query_plan(lights, test_good, test_per_defect, colmap=colmap):
            mask_file = f"ground_truth/{kind}/{Path(file).stem}.png"
            truth = studios[number].render_query(kind, rng).write(folder, file, mask_file)
            brightness = all_lights[number].intensity / training_light.intensity
            images.append({**truth, "light": number + 1, "brightness": brightness})
            bar.advance(task)
        hidden = {"category": category, "seed": seed, "radius": radius, "images": images}
    write_json(root / "_hidden" / f"{category}.json", hidden)
    logger.info("Wrote %d images of %s to %s.", total, category, root / category)
    return root / category


def _check_lights(lights: int) -> int:
    """Return the number of lights if it is in range."""
    if not 1 <= lights <= 1 + len(_LIGHT_CHANGES):
        msg = f"lights has to be 1 to {1 + len(_LIGHT_CHANGES)}, got {lights}."
        raise ValueError(msg)
    return lights


def _nth_light(light: Light, number: int) -> Light:
    """Return the training light for number 0, else a changed light."""
    if number == 0:
        return light
    degrees, tint, intensity = _LIGHT_CHANGES[number - 1]

    def tinted(color: _Color) -> _Color:
        return color[0] * tint[0], color[1] * tint[1], color[2] * tint[2]

    return replace(
        light,
        sky=tinted(light.sky),
        ground=tinted(light.ground),
        key=tinted(light.key),
        fill=tinted(light.fill),
        key_direction=_rotated(light.key_direction, degrees),
        fill_direction=_rotated(light.fill_direction, degrees),
        intensity=light.intensity * intensity,
    )


def _rotated(direction: tuple[float, float, float], degrees: float) -> tuple[float, float, float]:
    """Rotate a direction about the vertical axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y, z = direction
    return c * x - s * y, s * x + c * y, z


def _query_plan(lights: int, test_good: int, test_per_defect: int, *, colmap: bool) -> list[tuple[str, str, int]]:
    """List the kind, file and light (from 0) of all queries."""
    suffix = ".jpg" if colmap else ".png"
    plan = []
    for number in range(lights):
        kind, start = ("good", number * test_good) if colmap else (f"good_{number + 1}", 0)
        plan += [("good", f"test/{kind}/{start + i}{suffix}", number) for i in range(test_good)]
    for kind in DEFECTS:
        plan += [(kind, f"test/{kind}/{i}{suffix}", i % lights) for i in range(test_per_defect)]
    return plan


def _write_synthetic_views(folder: Path, studio: Studio, views: int, _seed: int, step: Callable[[], Any]) -> None:
    """Write the training views of the synthetic layout."""
    poses = training_poses(views, studio.radius)
    write_transforms(folder, write_training_views(studio, poses, folder, "train/{}.png", step), poses)


def _write_real_views(folder: Path, studio: Studio, views: int, seed: int, step: Callable[[], Any]) -> None:
    """Write the training views of the real layout, and their COLMAP model."""
    poses = training_poses(views, studio.radius)
    files = write_training_views(studio, poses, folder, "images/{}.jpg", step)
    cameras = Camera.stack([studio.camera(pose) for pose in poses])
    names = [Path(file).name for file in files]
    write_model(folder / "sparse" / "0", names, cameras, studio.toy, np.random.default_rng([seed, 2]))
