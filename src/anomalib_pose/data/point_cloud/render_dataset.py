# SPDX-License-Identifier: Apache-2.0
"""Render the test clouds of a raw data set to disk, in the layout that PointAD published.

Each data set has a function that yields one job for each cloud. A job renders its cloud and writes it to a temporary
folder of the category. The folder takes its final name when all jobs of the category have succeeded.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from anomalib_pose.data.files import check_source_stays, new_category
from anomalib_pose.data.images import read_image
from anomalib_pose.data.listing import data_files, data_folders, file_named, is_good, warn_without_good
from anomalib_pose.data.masks import read_defect_mask
from anomalib_pose.data.point_cloud.files import (
    MINIMUM_POINTS,
    measured_points,
    name_file_in_errors,
    read_measured_points,
    read_points,
)
from anomalib_pose.data.point_cloud.preprocessing import isolate_object
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings, render_organized, render_unorganized
from anomalib_pose.data.point_cloud.rendered_layout import (
    VIEWS,
    index_entry,
    write_index,
    write_original,
    write_rendered,
)
from anomalib_pose.data.point_cloud.sources import CloudSample, RawSource

logger = logging.getLogger(__name__)

# The paper's angles for the other data sets, in degrees.
_EYECANDIES_ANGLES = (-30.0, -15.0, 0.0, 10.0, 20.0), (-30.0, -15.0, 10.0, 20.0)
_EYECANDIES_TILT = 45.0
_EYECANDIES_SCALE = 0.1
_REAL3D_ANGLES = tuple(float(angle) for angle in range(-144, 145, 36))

Job = Callable[[Path], None]
"""Renders one cloud and writes it below the given folder of its category."""


def render_dataset(
    source: Path,
    out: Path,
    dataset: str,
    settings: RenderSettings,
    *,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Render the test clouds of a data set and write them with lists of all clouds.

    Args:
        source: folder with the categories of the data set.
        out: folder to write to.
        dataset: layout of the source, a key of ``DATASETS``.
        settings: settings of the views; for Eyecandies and Real3D-AD the paper's angles replace those of the
            settings.
        categories: categories to render; None for all.
        seed: seed of the choice of points and planes.
        overwrite: replace categories that exist.

    Raises:
        FileExistsError: if a category exists and must not be replaced.
        FileNotFoundError: if the folder, its categories or its clouds do not exist.
        ValueError: if a file cannot be read.
    """
    if not source.is_dir():
        msg = f"There is no folder {source}: expected the categories of {dataset} in it."
        raise FileNotFoundError(msg)
    names = categories or [path.name for path in data_folders(source) if (path / "test").is_dir()]
    if not names:
        msg = f"There are no categories in {source}: expected folders with a folder 'test'."
        raise FileNotFoundError(msg)
    for name in names:
        check_source_stays(source / name, out / name)
        jobs = list(DATASETS[dataset](source / name, settings, seed))
        if not jobs:
            msg = f"There are no clouds of {dataset} in {source / name / 'test'}: look at --dataset."
            raise FileNotFoundError(msg)
        with new_category(out, name, overwrite=overwrite) as folder:
            for job in track(jobs, f"Rendering {name}", transient=True):
                job(folder)
        logger.info("Wrote %d clouds of %s to %s.", len(jobs), name, out / name)
    write_index(out, {path.name: _entries(out, path) for path in data_folders(out) if (path / "test").is_dir()})


def _entries(root: Path, category: Path) -> list[dict[str, Any]]:
    kinds = data_folders(category / "test")
    rendered = [path for kind in kinds for path in data_folders(kind / VIEWS)]
    return [index_entry(root, path.parents[1], path.name) for path in rendered]


def _mvtec3d_jobs(category: Path, settings: RenderSettings, seed: int) -> Iterator[Job]:
    source = RawSource(settings, seed=seed)
    for sample in source.samples(category):

        def render(out: Path, sample: CloudSample = sample) -> None:
            xyz, rgb, gt_mask = source.original(sample)
            folder = out / "test" / sample.folder.name
            with name_file_in_errors(sample.folder / "xyz" / sample.name):
                cloud = render_organized(xyz, settings, gt_mask, rgb)
            write_rendered(folder, sample.name, cloud)
            write_original(folder, sample.name, xyz, rgb, gt_mask)

        yield render


def _eyecandies_jobs(category: Path, settings: RenderSettings, seed: int) -> Iterator[Job]:
    about_x, about_y = _EYECANDIES_ANGLES
    settings = replace(settings, about_x=about_x, about_y=about_y, tilt=_EYECANDIES_TILT)
    kinds = [kind for kind in data_folders(category / "test") if (kind / "pcd").is_dir()]
    warn_without_good(category / "test", kinds)
    for path in (path for kind in kinds for path in data_files(kind / "pcd", (".ply",))):

        def render(out: Path, path: Path = path) -> None:
            kind = path.parents[1]
            rgb, _ = read_image(file_named(kind / "rgb", path.stem))
            gt_mask = None if is_good(kind.name) else read_defect_mask(file_named(kind / "gt", path.stem))
            xyz = _read_eyecandies(path, rgb.shape[1], rgb.shape[2])
            with name_file_in_errors(path):
                xyz, image, mask = isolate_object(xyz, rgb, gt_mask, seed)
                cloud = render_organized(xyz, settings, mask, image)
            folder = out / "test" / kind.name
            write_rendered(folder, path.stem, cloud)
            write_original(folder, path.stem, xyz, image, mask)

        yield render


def _read_eyecandies(path: Path, height: int, width: int) -> Tensor:
    """Read a .ply as an organized cloud (height, width, 3): +x right, +y down, +z forward, scaled by 0.1."""
    points = read_points(path).points
    if len(points) != height * width:
        msg = f"{path} has {len(points)} points, but its photograph {height} x {width} pixels: expected one for each."
        raise ValueError(msg)
    x, y, z = (_EYECANDIES_SCALE * points).unbind(-1)
    xyz = torch.stack([x, z, -y], -1)
    return torch.where(torch.isfinite(xyz).all(-1, keepdim=True), xyz, 0.0).reshape(height, width, 3)


def _real3d_jobs(category: Path, settings: RenderSettings, seed: int) -> Iterator[Job]:
    settings = replace(settings, about_x=_REAL3D_ANGLES, about_y=())
    for path in data_files(category / "test", (".pcd",)):

        def render(out: Path, path: Path = path) -> None:
            good = any(is_good(part) for part in path.stem.split("_"))
            labels_path = category / "gt" / f"{path.stem}.txt"
            points, labels = _read_good_real3d(path) if good else _read_labeled_real3d(labels_path)
            folder = out / "test" / ("good" if good else "anomaly")
            with name_file_in_errors(path):
                cloud = render_unorganized(points, labels, settings, seed)
            write_rendered(folder, path.stem, cloud)

        yield render


def _read_good_real3d(path: Path) -> tuple[Tensor, Tensor]:
    """Read the points (n, 3) of a cloud without defect, with labels (n,) that are all False."""
    points = read_measured_points(path)
    return points, torch.zeros(len(points), dtype=torch.bool)


def _read_labeled_real3d(path: Path) -> tuple[Tensor, Tensor]:
    """Read points (n, 3) and labels (n,) from a text file with x, y, z and label in each line."""
    if not path.is_file():
        msg = f"There is no file {path}: expected x, y, z and label of each point of a cloud with a defect."
        raise FileNotFoundError(msg)
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        msg = f"{path} has a line that is not x, y, z and label: {error}."
        raise ValueError(msg) from error
    if table.shape[1] != 4 or not np.isfinite(table[:, 3]).all():
        msg = (
            f"{path} should have four numbers in each line, x, y, z and label; it has {table.shape[1]}, or NaN labels."
        )
        raise ValueError(msg)
    points = torch.from_numpy(table[:, :3]).float()
    measured = measured_points(path, points)
    if int(measured.sum()) < MINIMUM_POINTS:
        msg = f"{path} has {int(measured.sum())} points with finite numbers: expected {MINIMUM_POINTS} or more."
        raise ValueError(msg)
    return points[measured], torch.from_numpy(table[:, 3] > 0)[measured]


DATASETS: dict[str, Callable[[Path, RenderSettings, int], Iterator[Job]]] = {
    "mvtec3d": _mvtec3d_jobs,
    "eyecandies": _eyecandies_jobs,
    "real3d": _real3d_jobs,
}
"""Jobs of a category, by the name of its layout."""
