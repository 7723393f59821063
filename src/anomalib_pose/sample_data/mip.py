# SPDX-License-Identifier: Apache-2.0
"""A small data set in MIP's layouts, drawn from nothing: queries in light that training has not seen."""

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
    check_numbers,
    draw_training,
    lattice,
    one_thread,
    write_transforms,
)

logger = logging.getLogger(__name__)

_Color = tuple[float, float, float]
# How far the lamps are turned about the vertical, degrees; factors on the colors; factor on the intensity.
_CHANGES: tuple[tuple[float, _Color, float], ...] = (
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

    Toy, training views and defects are those of ``write_mad``. Light 1 is that of the training views; in the others
    the lamps stand elsewhere, have another color, and are brighter or dimmer. Equal arguments give equal files.

    Args:
        out: folder of the data set; made if need be.
        category: name of the category: "car", "house" or "rocket", or any other for a toy that the seed chooses.
        seed: chooses the toy's colors and details, the test views and the defects.
        size: longer side of the images in pixels.
        views: number of training views, at most the lattice's 210; fewer are spread over it.
        lights: number of lights that queries are seen in, 1 to 6.
        test_good: number of test images without defect in each light. The synthetic layout has them in ``good_1``,
            ``good_2`` and so on, the other in ``good``.
        test_per_defect: number of test images of each of the three kinds of defect; they take the lights in turn.
        radius: distance of the training cameras from the toy's center.
        colmap: write MIP-Real's layout: photographs of 4:3 as JPEG, and a COLMAP model as text. The masks then are
            exact but for JPEG's losses.
        light: the light of the training views; soft daylight if None.
        overwrite: replace a category that exists.
        progress: show a progress bar.

    Returns:
        Folder of the category.

    Raises:
        FileExistsError: if the category exists and is not to be overwritten.
        ValueError: if a number is out of its range, or the category is no plain folder name.
    """
    check_numbers(size, views, test_good, test_per_defect, radius)
    first = light or Light()
    all_lights = [_changed(first, number) for number in range(_checked(lights))]
    root = Path(out)
    total = views + test_good * lights + test_per_defect * len(DEFECTS)
    height = round(size * _REAL_ASPECT) if colmap else size
    with (
        new_category(root, category, overwrite=overwrite) as folder,
        one_thread(),
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"Drawing {category}", total=total)
        toy = build_toy(category, seed)
        studios = [Studio(toy, changed, size, height, radius) for changed in all_lights]
        write_training = _write_photographs if colmap else _write_views
        write_training(folder, studios[0], views, seed, lambda: bar.advance(task))
        images = []
        rng = np.random.default_rng([seed, 1])
        for kind, file, number in _plan(lights, test_good, test_per_defect, colmap=colmap):
            mask_file = f"ground_truth/{kind}/{Path(file).stem}.png"
            known = studios[number].query(kind, rng).write(folder, file, mask_file)
            brightness = all_lights[number].intensity / first.intensity
            images.append({**known, "light": number + 1, "brightness": brightness})
            bar.advance(task)
        hidden = {"category": category, "seed": seed, "radius": radius, "images": images}
    write_json(root / "_hidden" / f"{category}.json", hidden)
    logger.info("Wrote %d images of %s to %s.", total, category, root / category)
    return root / category


def _checked(lights: int) -> int:
    if not 1 <= lights <= 1 + len(_CHANGES):
        msg = f"lights has to be 1 to {1 + len(_CHANGES)}, got {lights}."
        raise ValueError(msg)
    return lights


def _changed(light: Light, number: int) -> Light:
    """The training light, which is number 0, or another."""
    if number == 0:
        return light
    degrees, tint, intensity = _CHANGES[number - 1]

    def tinted(color: _Color) -> _Color:
        return color[0] * tint[0], color[1] * tint[1], color[2] * tint[2]

    return replace(
        light,
        sky=tinted(light.sky),
        ground=tinted(light.ground),
        key=tinted(light.key),
        fill=tinted(light.fill),
        key_direction=_turned(light.key_direction, degrees),
        fill_direction=_turned(light.fill_direction, degrees),
        intensity=light.intensity * intensity,
    )


def _turned(direction: tuple[float, float, float], degrees: float) -> tuple[float, float, float]:
    """A direction turned about the vertical."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y, z = direction
    return c * x - s * y, s * x + c * y, z


def _plan(lights: int, test_good: int, test_per_defect: int, *, colmap: bool) -> list[tuple[str, str, int]]:
    """Kind, file and light (from 0) of every query."""
    suffix = ".jpg" if colmap else ".png"
    plan = []
    for number in range(lights):
        kind, start = ("good", number * test_good) if colmap else (f"good_{number + 1}", 0)
        plan += [("good", f"test/{kind}/{start + i}{suffix}", number) for i in range(test_good)]
    for kind in DEFECTS:
        plan += [(kind, f"test/{kind}/{i}{suffix}", i % lights) for i in range(test_per_defect)]
    return plan


def _write_views(folder: Path, studio: Studio, views: int, _seed: int, step: Callable[[], Any]) -> None:
    """Training views of the synthetic layout."""
    poses = lattice(views, studio.radius)
    write_transforms(folder, draw_training(studio, poses, folder, "train/{}.png", step), poses)


def _write_photographs(folder: Path, studio: Studio, views: int, seed: int, step: Callable[[], Any]) -> None:
    """Training views of the real layout, and their COLMAP model."""
    poses = lattice(views, studio.radius)
    files = draw_training(studio, poses, folder, "images/{}.jpg", step)
    cameras = Camera.stack([studio.camera(pose) for pose in poses])
    names = [Path(file).name for file in files]
    write_model(folder / "sparse" / "0", names, cameras, studio.toy, np.random.default_rng([seed, 2]))
