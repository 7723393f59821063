# SPDX-License-Identifier: Apache-2.0
"""A small data set in MAD's layout, drawn from nothing."""

import logging
from pathlib import Path

import numpy as np
from rich.progress import Progress

from anomalib_pose.data.files import new_category, write_json
from anomalib_pose.render.mesh_lighting import Light
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


def write_mad(
    out: str | Path,
    category: str,
    seed: int = 0,
    size: int = 200,
    *,
    views: int = LATTICE_VIEWS,
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
        seed: chooses the toy's colors and details, the test views and the defects.
        size: width and height of the images in pixels.
        views: number of training views, at most the lattice's 210; fewer are spread over it.
        test_good: number of test images without defect.
        test_per_defect: number of test images of each of the three kinds of defect.
        radius: distance of the training cameras from the toy's center.
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
    check_numbers(size, views, test_good, test_per_defect, radius)
    if not 0 <= brightness_variation < 1:
        msg = f"brightness_variation has to be in [0, 1), got {brightness_variation}."
        raise ValueError(msg)
    root = Path(out)
    total = views + test_good + test_per_defect * len(DEFECTS)
    with (
        new_category(root, category, overwrite=overwrite) as folder,
        one_thread(),
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"Drawing {category}", total=total)
        studio = Studio(build_toy(category, seed), light or Light(), size, size, radius)
        poses = lattice(views, radius)
        files = draw_training(studio, poses, folder, "train/good/{}.png", lambda: bar.advance(task))
        write_transforms(folder, files, poses)
        rng = np.random.default_rng([seed, 1])
        images = []
        for kind in ("good", *DEFECTS):
            for number in range(test_good if kind == "good" else test_per_defect):
                query = studio.query(kind, rng, brightness_variation)
                mask_file = f"ground_truth/{kind}/{number}_mask.png"
                images.append(query.write(folder, f"test/{kind}/{number}.png", mask_file))
                bar.advance(task)
        hidden = {"category": category, "seed": seed, "radius": radius, "images": images}
    write_json(root / "_hidden" / f"{category}.json", hidden)
    logger.info("Wrote %d images of %s to %s.", total, category, root / category)
    return root / category
