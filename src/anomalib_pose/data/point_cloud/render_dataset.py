# SPDX-License-Identifier: Apache-2.0
"""Draw the test clouds of a data set, and write them in the layout that PointAD published.

    python tools/render_clouds.py datasets/mvtec_3d rendered/mvtec_3d
    python tools/render_clouds.py eyecandies_clouds rendered/eyecandies --dataset eyecandies
    python tools/render_clouds.py Real3D-AD-PCD rendered/real3d --dataset real3d

What it reads, for each category:

* mvtec3d: ``test/<kind>`` with ``xyz/<name>.tiff``, ``rgb/<name>.png`` and ``gt/<name>.png``;
* eyecandies: ``test/good`` and ``test/anomaly`` with organized clouds ``pcd/<name>.ply`` (as many points as the
  photograph has pixels, row by row), ``rgb/<name>.png`` and ``gt/<name>.png``;
* real3d: ``test/<name>.pcd``, and ``gt/<name>.txt`` (x, y, z and label of each point) of those without ``good`` in
  their name.

A category that cannot be drawn whole is not written. MVTec3DRendered, EyecandiesRendered and Real3DADRendered read
what is written.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from anomalib_pose.data.files import new_category
from anomalib_pose.data.images import read_image, read_mask
from anomalib_pose.data.point_cloud.files import MINIMUM_POINTS, naming, read_points
from anomalib_pose.data.point_cloud.preprocessing import isolate_object
from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings, render_organized, render_unorganized
from anomalib_pose.data.point_cloud.rendered_layout import (
    VIEWS,
    index_entry,
    write_index,
    write_original,
    write_rendered,
)
from anomalib_pose.data.point_cloud.sources import RawSource
from anomalib_pose.render.points import VIEW_ANGLES

logger = logging.getLogger(__name__)

# The paper's angles for the other data sets, in degrees.
_EYECANDIES = (-30.0, -15.0, 0.0, 10.0, 20.0), (-30.0, -15.0, 10.0, 20.0)
_EYECANDIES_TILT = 45.0
_EYECANDIES_SCALE = 0.1
_REAL3D = tuple(float(angle) for angle in range(-144, 145, 36))

# Draws one recording to a folder of its kind, below the category's new folder.
Job = Callable[[Path], None]


def mvtec3d_jobs(category: Path, settings: RenderSettings, seed: int) -> Iterator[Job]:
    source = RawSource(settings, seed=seed)
    for sample in source.samples(category):

        def draw(out: Path, sample=sample) -> None:  # noqa: ANN001
            xyz, rgb, gt_mask = source.original(sample)
            folder = out / "test" / sample.folder.name
            with naming(sample.folder / "xyz" / sample.name):
                cloud = render_organized(xyz, settings, gt_mask, rgb)
            write_rendered(folder, sample.name, cloud)
            write_original(folder, sample.name, xyz, rgb, gt_mask)

        yield draw


def eyecandies_jobs(category: Path, settings: RenderSettings, seed: int) -> Iterator[Job]:
    settings = replace(settings, about_x=_EYECANDIES[0], about_y=_EYECANDIES[1], tilt=_EYECANDIES_TILT)
    for path in sorted((category / "test").glob("*/pcd/*.ply")):

        def draw(out: Path, path: Path = path) -> None:
            kind = path.parents[1]
            rgb, _ = read_image(kind / "rgb" / f"{path.stem}.png")
            gt_mask = None if kind.name == "good" else read_mask(kind / "gt" / f"{path.stem}.png")
            xyz = eyecandies_grid(path, rgb.shape[1], rgb.shape[2])
            with naming(path):
                xyz, image, mask = isolate_object(xyz, rgb, gt_mask, seed)
                cloud = render_organized(xyz, settings, mask, image)
            folder = out / "test" / kind.name
            write_rendered(folder, path.stem, cloud)
            write_original(folder, path.stem, xyz, image, mask)

        yield draw


def eyecandies_grid(path: Path, height: int, width: int) -> Tensor:
    """Organized cloud (height, width, 3) of a .ply, its axes turned to +x right, +y down, +z forward, in tenths."""
    points = read_points(path).points
    if len(points) != height * width:
        msg = f"{path} has {len(points)} points, but its photograph {height} x {width} pixels: expected one for each."
        raise ValueError(msg)
    x, y, z = (_EYECANDIES_SCALE * points).unbind(-1)
    xyz = torch.stack([x, z, -y], -1)
    return torch.where(torch.isfinite(xyz).all(-1, keepdim=True), xyz, 0.0).reshape(height, width, 3)


def real3d_jobs(category: Path, settings: RenderSettings, seed: int) -> Iterator[Job]:
    settings = replace(settings, about_x=_REAL3D, about_y=())
    for path in sorted((category / "test").glob("*.pcd")):

        def draw(out: Path, path: Path = path) -> None:
            good = "good" in path.stem.split("_")
            points, labels = real3d_good(path) if good else real3d_labelled(category / "gt" / f"{path.stem}.txt")
            folder = out / "test" / ("good" if good else "anomaly")
            with naming(path):
                cloud = render_unorganized(points, labels, settings, seed)
            write_rendered(folder, path.stem, cloud)

        yield draw


def real3d_good(path: Path) -> tuple[Tensor, Tensor]:
    points = read_points(path).points
    points = points[torch.isfinite(points).all(1)]
    return points, torch.zeros(len(points), dtype=torch.bool)


def real3d_labelled(path: Path) -> tuple[Tensor, Tensor]:
    """Points and labels of a text file with x, y, z and label in each line."""
    if not path.is_file():
        msg = f"There is no file {path}: expected x, y, z and label of each point of a cloud with a defect."
        raise FileNotFoundError(msg)
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        msg = f"{path} has a line that is not x, y, z and label: {error}."
        raise ValueError(msg) from error
    if table.shape[1] != 4 or len(table) < MINIMUM_POINTS or not np.isfinite(table).all():
        msg = f"{path} should have four finite numbers in {MINIMUM_POINTS} or more lines, it has {table.shape}."
        raise ValueError(msg)
    return torch.from_numpy(table[:, :3]).float(), torch.from_numpy(table[:, 3] > 0)


_JOBS = {"mvtec3d": mvtec3d_jobs, "eyecandies": eyecandies_jobs, "real3d": real3d_jobs}


def render(source: Path, out: Path, options: argparse.Namespace) -> None:
    """Draw all categories, or those that were asked for."""
    if not source.is_dir():
        msg = f"There is no folder {source}: expected the categories of {options.dataset} in it."
        raise FileNotFoundError(msg)
    settings = RenderSettings.of_views(
        options.views, options.size, point_size=options.point_size, depth_tolerance=options.depth_tolerance
    )
    names = options.categories or sorted(path.parent.name for path in source.glob("*/test"))
    if not names:
        msg = f"There are no categories in {source}: expected folders with a folder 'test'."
        raise FileNotFoundError(msg)
    for name in names:
        jobs = list(_JOBS[options.dataset](source / name, settings, options.seed))
        if not jobs:
            msg = f"There are no clouds of {options.dataset} in {source / name / 'test'}: look at --dataset."
            raise FileNotFoundError(msg)
        with new_category(out, name, overwrite=options.overwrite) as folder:
            for job in track(jobs, f"Drawing {name}", transient=True):
                job(folder)
        logger.info("Wrote %d clouds of %s to %s.", len(jobs), name, out / name)
    categories = {path.name: entries(out, path) for path in sorted(out.iterdir()) if (path / "test").is_dir()}
    write_index(out, categories)


def entries(root: Path, category: Path) -> list[dict]:
    rendered = sorted((category / "test").glob(f"*/{VIEWS}/*"))
    return [index_entry(root, path.parents[1], path.name) for path in rendered]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the categories of the data set")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--dataset", choices=list(_JOBS), default="mvtec3d", help="layout of the source")
    parser.add_argument("--categories", nargs="+", help="categories to draw; all if not given")
    parser.add_argument("--views", type=int, default=9, choices=list(VIEW_ANGLES), help="views of mvtec3d's clouds")
    parser.add_argument("--size", type=int, default=336, help="width and height of the views in pixels")
    parser.add_argument("--point-size", type=float, help="side of a point in pixels of a window of 1024")
    parser.add_argument("--depth-tolerance", type=float, help="points this much behind the nearest are visible too")
    parser.add_argument("--seed", type=int, default=0, help="makes the choice of points and planes repeatable")
    parser.add_argument("--overwrite", action="store_true", help="replace categories that exist")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        render(options.source, options.out, options)
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
