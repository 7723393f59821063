# SPDX-License-Identifier: Apache-2.0
"""Writer of a small rendered data set in MAD's layout."""

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
    check_arguments,
    single_torch_thread,
    training_poses,
    write_training_views,
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

    The toy is built of bricks. Training views lie on MAD's lattice. Test views lie at random positions on the upper
    hemisphere, with distances up to 2 % smaller or larger, and aim slightly beside the center. Equal arguments give
    equal files.

    Args:
        out: folder of the data set; created if it does not exist.
        category: name of the category: "car", "house", "rocket", or any other name for a toy that the seed selects.
        seed: seed of the toy's colors and details, of the test views and of the defects.
        size: width and height of the images in pixels.
        views: number of training views, at most the 210 of the lattice; fewer views are spread over the lattice.
        test_good: number of test images without defect.
        test_per_defect: number of test images of each of the three kinds of defect.
        radius: distance of the training cameras from the toy's center.
        brightness_variation: largest relative change of each test image's light, upwards or downwards.
        light: light of the scene; ``Light()``, soft daylight, if None.
        overwrite: replace an existing category.
        progress: show a progress bar.

    Returns:
        Folder of the category.

    Raises:
        FileExistsError: if the category exists and ``overwrite`` is False.
        ValueError: if a number is out of its range, or the category is not a plain folder name.
    """
    check_arguments(size, views, test_good, test_per_defect, radius)
    if not 0 <= brightness_variation < 1:
        msg = f"brightness_variation should be in [0, 1), got {brightness_variation}."
        raise ValueError(msg)
    root = Path(out)
    total = views + test_good + test_per_defect * len(DEFECTS)
    with (
        new_category(root, category, overwrite=overwrite) as folder,
        single_torch_thread(),
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task(f"Rendering {category}", total=total)
        studio = Studio(build_toy(category, seed), light or Light(), size, size, radius)
        poses = training_poses(views, radius)
        files = write_training_views(studio, poses, folder, "train/good/{}.png", lambda: bar.advance(task))
        write_transforms(folder, files, poses)
        rng = np.random.default_rng([seed, 1])
        images = []
        for kind in ("good", *DEFECTS):
            for number in range(test_good if kind == "good" else test_per_defect):
                query = studio.render_query(kind, rng, brightness_variation)
                mask_file = f"ground_truth/{kind}/{number}_mask.png"
                images.append(query.write(folder, f"test/{kind}/{number}.png", mask_file))
                bar.advance(task)
        hidden = {"category": category, "seed": seed, "radius": radius, "images": images}
    write_json(root / "_hidden" / f"{category}.json", hidden)
    logger.info("Wrote %d images of %s to %s.", total, category, root / category)
    return root / category
