# SPDX-License-Identifier: Apache-2.0
"""Write a small data set of a toy built of bricks: ``python tools/make_sample_data.py mad data --category car``."""

import argparse
import logging
import sys

from anomalib_pose.data.sample import write_mad


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    layouts = parser.add_subparsers(dest="layout", required=True)
    mad = layouts.add_parser("mad", help="MAD's layout: posed training views, test views with three kinds of defect")
    mad.add_argument("out", help="folder of the data set")
    mad.add_argument("--category", required=True, help="car, house, rocket, or a name of your own")
    mad.add_argument("--seed", type=int, default=0, help="chooses the toy's look, the test views and the defects")
    mad.add_argument("--size", type=int, default=200, help="width and height in pixels")
    mad.add_argument("--views", type=int, default=210, help="training views, at most 210")
    mad.add_argument("--test-good", type=int, default=10, help="test images without defect")
    mad.add_argument("--test-per-defect", type=int, default=10, help="test images of each kind of defect")
    mad.add_argument("--radius", type=float, default=3.5, help="distance of the cameras")
    mad.add_argument(
        "--brightness-variation", type=float, default=0.0, help="largest change of a test image's light, as a share"
    )
    mad.add_argument("--overwrite", action="store_true", help="replace a category that exists")
    options = vars(parser.parse_args(arguments))
    options.pop("layout")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_mad(**options)
    except (FileExistsError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
