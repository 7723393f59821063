# SPDX-License-Identifier: Apache-2.0
"""Render the test clouds of a data set, and write them in the layout that PointAD published.

    anomalib-pose render-clouds datasets/mvtec_3d rendered/mvtec_3d
    anomalib-pose render-clouds eyecandies_clouds rendered/eyecandies --dataset eyecandies
    anomalib-pose render-clouds Real3D-AD-PCD rendered/real3d --dataset real3d

Files that the command reads from each category:

* mvtec3d: test/<kind> with xyz/<name>.tiff, rgb/<name>.png and gt/<name>.png;
* eyecandies: test/good and test/anomaly with organized clouds pcd/<name>.ply (as many points as the photograph has
  pixels, row by row), rgb/<name>.png and gt/<name>.png;
* real3d: test/<name>.pcd, and gt/<name>.txt (x, y, z and label of each point) for names without "good".

A category is written whole or not at all. MVTec3DRendered, EyecandiesRendered and Real3DADRendered read the result.
"""

import argparse
from pathlib import Path

_DATASETS = ("mvtec3d", "eyecandies", "real3d")
_VIEWS = (5, 9, 11)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, help="folder with the categories of the data set")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--dataset", choices=_DATASETS, default="mvtec3d", help="layout of the source")
    parser.add_argument("--categories", nargs="+", help="categories to render (default: all)")
    parser.add_argument("--views", type=int, default=9, choices=_VIEWS, help="number of views of mvtec3d's clouds")
    parser.add_argument("--size", type=int, default=336, help="width and height of the views in pixels")
    parser.add_argument("--point-size", type=float, help="side of a point in pixels of a window of 1024 pixels")
    parser.add_argument(
        "--depth-tolerance", type=float, help="points up to this distance behind the nearest point are visible too"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of points and planes")
    parser.add_argument("--overwrite", action="store_true", help="replace categories that exist")


def run(options: argparse.Namespace) -> None:
    """Render the clouds."""
    from anomalib_pose.data.point_cloud.render_dataset import render_dataset
    from anomalib_pose.data.point_cloud.rendered_cloud import RenderSettings

    settings = RenderSettings.of_views(
        options.views, options.size, point_size=options.point_size, depth_tolerance=options.depth_tolerance
    )
    render_dataset(
        options.source,
        options.out,
        options.dataset,
        settings,
        categories=options.categories,
        seed=options.seed,
        overwrite=options.overwrite,
    )
