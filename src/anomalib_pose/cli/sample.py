# SPDX-License-Identifier: Apache-2.0
"""Write a small sample data set of toys in the layout of a real one.

anomalib-pose sample mad data --category car         posed images of a brick toy, for the scene models
anomalib-pose sample mip data --category house       the same, with queries in several lights
anomalib-pose sample clouds data                     point clouds of solids, for PointAD
anomalib-pose sample chairs data/chairs              whole and broken chairs, for Looking3D
"""

import argparse
from collections.abc import Callable

_SOLIDS = ("ring", "dome", "peg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of each layout."""
    layouts = parser.add_subparsers(dest="layout", required=True)
    mad = layouts.add_parser("mad", help="MAD's layout: posed training views, test views with three kinds of defects")
    _add_toy_arguments(mad, test_good=10, test_per_defect=10)
    mad.add_argument(
        "--brightness-variation",
        type=float,
        default=0.0,
        help="largest change of a test image's brightness, as a fraction",
    )
    mip = layouts.add_parser("mip", help="MIP's layouts: like mad, with test views in several lights")
    _add_toy_arguments(mip, test_good=5, test_per_defect=9)
    mip.add_argument(
        "--lights",
        type=int,
        default=3,
        help="number of lights of the test views, at most 6; the first is the training light",
    )
    mip.add_argument("--colmap", action="store_true", help="MIP-Real's layout: 4:3 photographs and a COLMAP model")
    clouds = layouts.add_parser("clouds", help="raw MVTec 3D-AD's layout: solids on a table, four kinds of defects")
    _add_cloud_arguments(clouds)
    chairs = layouts.add_parser("chairs", help="BrokenChairs' layout: photographs and reference views of chairs")
    _add_chair_arguments(chairs)


def run(options: argparse.Namespace) -> None:
    """Write the data set."""
    from anomalib_pose.sample_data import write_clouds, write_mad, write_mip
    from anomalib_pose.sample_data.chairs import write_chairs

    writers: dict[str, Callable[..., object]] = {
        "chairs": write_chairs,
        "clouds": write_clouds,
        "mad": write_mad,
        "mip": write_mip,
    }
    arguments = vars(options)
    writers[arguments.pop("layout")](**arguments)


def _add_toy_arguments(layout: argparse.ArgumentParser, test_good: int, test_per_defect: int) -> None:
    layout.add_argument("out", help="folder of the data set")
    layout.add_argument("--category", required=True, help="car, house, rocket, or any other name")
    layout.add_argument("--seed", type=int, default=0, help="seed of the toy's look, the test views and the defects")
    layout.add_argument("--size", type=int, default=200, help="longer side of the images in pixels")
    layout.add_argument("--views", type=int, default=210, help="number of training views, at most 210")
    layout.add_argument("--test-good", type=int, default=test_good, help="test images without defect (mip: per light)")
    layout.add_argument(
        "--test-per-defect", type=int, default=test_per_defect, help="test images of each kind of defect"
    )
    layout.add_argument("--radius", type=float, default=3.5, help="distance of the cameras from the toy")
    layout.add_argument("--overwrite", action="store_true", help="replace a category that exists")


def _add_cloud_arguments(layout: argparse.ArgumentParser) -> None:
    layout.add_argument("out", help="folder of the data set")
    layout.add_argument("--categories", nargs="+", default=list(_SOLIDS), choices=_SOLIDS, help="solids to write")
    layout.add_argument("--seed", type=int, default=0, help="seed of the solids, the defects and the noise")
    layout.add_argument("--size", type=int, default=200, help="width and height of clouds and images")
    layout.add_argument("--train", type=int, default=4, help="training clouds")
    layout.add_argument("--test-good", type=int, default=5, help="test clouds without defect")
    layout.add_argument("--test-per-defect", type=int, default=3, help="test clouds of each kind of defect")
    layout.add_argument("--overwrite", action="store_true", help="replace categories that exist")


def _add_chair_arguments(layout: argparse.ArgumentParser) -> None:
    layout.add_argument("out", help="folder of the data set")
    layout.add_argument("--shapes", type=int, default=12, help="number of chairs, 3 or more")
    layout.add_argument("--queries", type=int, default=10, help="photographs of each chair; every second one is broken")
    layout.add_argument("--seed", type=int, default=0, help="seed of the shapes, the views and the defects")
    layout.add_argument("--size", type=int, default=512, help="side of the photographs in pixels")
    layout.add_argument("--views", type=int, default=20, help="reference views of each chair")
    layout.add_argument("--overwrite", action="store_true", help="replace a folder that exists")
