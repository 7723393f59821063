# SPDX-License-Identifier: Apache-2.0
"""Write a small data set of toys.

``python tools/make_sample_data.py mad data --category car``: images of bricks, for pose-agnostic detection.
``python tools/make_sample_data.py clouds data``: clouds of solids, for detection in clouds.
``python tools/make_sample_data.py chairs data/chairs``: whole and broken chairs, with views of the whole ones.
"""

import argparse
import logging
import sys

from anomalib_pose.sample_data import write_clouds, write_mad, write_mip
from anomalib_pose.sample_data.chairs import write_chairs
from anomalib_pose.sample_data.solids import SOLIDS

_WRITERS = {"chairs": write_chairs, "clouds": write_clouds, "mad": write_mad, "mip": write_mip}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layouts = parser.add_subparsers(dest="layout", required=True)
    mad = layouts.add_parser("mad", help="MAD's layout: posed training views, test views with three kinds of defect")
    _add_common(mad, test_good=10, test_per_defect=10)
    mad.add_argument(
        "--brightness-variation", type=float, default=0.0, help="largest change of a test image's light, as a share"
    )
    mip = layouts.add_parser("mip", help="MIP's layouts: as mad, with test views in lights that training has not seen")
    _add_common(mip, test_good=5, test_per_defect=9)
    mip.add_argument(
        "--lights", type=int, default=3, help="lights of the test views, at most 6; the first is training's"
    )
    mip.add_argument("--colmap", action="store_true", help="MIP-Real's layout: photographs of 4:3 and a COLMAP model")
    clouds = layouts.add_parser("clouds", help="raw MVTec 3D-AD's layout: solids on a table, four kinds of defect")
    clouds.add_argument("out", help="folder of the data set")
    clouds.add_argument("--categories", nargs="+", default=list(SOLIDS), choices=list(SOLIDS), help="solids")
    clouds.add_argument("--seed", type=int, default=0, help="chooses solids, defects and noise")
    clouds.add_argument("--size", type=int, default=200, help="width and height of clouds and images")
    clouds.add_argument("--train", type=int, default=4, help="good clouds in train")
    clouds.add_argument("--test-good", type=int, default=5, help="test clouds without defect")
    clouds.add_argument("--test-per-defect", type=int, default=3, help="test clouds of each kind of defect")
    clouds.add_argument("--overwrite", action="store_true", help="replace categories that exist")
    chairs = layouts.add_parser("chairs", help="BrokenChairs' layout: whole and broken chairs, views of the whole ones")
    chairs.add_argument("out", help="folder of the data set")
    chairs.add_argument("--shapes", type=int, default=12, help="number of chairs, 3 or more")
    chairs.add_argument("--queries", type=int, default=10, help="photographs of each chair; every other one is broken")
    chairs.add_argument("--seed", type=int, default=0, help="chooses everything that is random")
    chairs.add_argument("--size", type=int, default=512, help="side of the photographs in pixels")
    chairs.add_argument("--views", type=int, default=20, help="reference views of each chair")
    chairs.add_argument("--overwrite", action="store_true", help="replace a folder that exists")
    options = vars(parser.parse_args(arguments))
    writer = _WRITERS[options.pop("layout")]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        writer(**options)
    except (FileExistsError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    return 0


def _add_common(layout: argparse.ArgumentParser, test_good: int, test_per_defect: int) -> None:
    layout.add_argument("out", help="folder of the data set")
    layout.add_argument("--category", required=True, help="car, house, rocket, or a name of your own")
    layout.add_argument("--seed", type=int, default=0, help="chooses the toy's look, the test views and the defects")
    layout.add_argument("--size", type=int, default=200, help="longer side in pixels")
    layout.add_argument("--views", type=int, default=210, help="training views, at most 210")
    layout.add_argument("--test-good", type=int, default=test_good, help="test images without defect (mip: per light)")
    layout.add_argument(
        "--test-per-defect", type=int, default=test_per_defect, help="test images of each kind of defect"
    )
    layout.add_argument("--radius", type=float, default=3.5, help="distance of the cameras")
    layout.add_argument("--overwrite", action="store_true", help="replace a category that exists")


if __name__ == "__main__":
    sys.exit(main())
