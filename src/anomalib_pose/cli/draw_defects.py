# SPDX-License-Identifier: Apache-2.0
"""Draw defects onto held-out photographs of an object whose poses and masks are known.

``python tools/draw_defects.py mary_rose data/tankard --every 8 --seed 1`` holds every eighth photograph of
``mary_rose/transforms.json`` out and writes it four times: as it is, with a stain, with a missing piece and with a
scratch. The other photographs are the training views. Then

    anomalib train --config configs/splatpose_folder.yaml --data.init_args.root data/tankard \
        --data.init_args.query_dir queries --data.init_args.mask_dir ground_truth

Queries have no masks of the object, so poses are found much better with ``--white``, which paints the background of all
photographs white. The true poses of the queries go to ``data/_hidden/tankard.json``, to measure pose errors with.
"""

import argparse
import logging
import sys

from anomalib_pose.sample_data.painted import DefectSizes
from anomalib_pose.sample_data.painted_queries import write_painted_queries

_SIZES = {
    "stain_area": "area of a stain, least and largest, as shares of the object's pixels",
    "missing_area": "area of a missing piece, as shares of the object's pixels",
    "scratch_length": "length of a scratch, as shares of the root of the object's area",
    "scratch_width": "width of a scratch, as shares of the root of the object's area",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder with transforms.json and masks of the object")
    parser.add_argument("out", help="folder to be written")
    parser.add_argument("--every", type=int, default=8, help="every n-th photograph is held out")
    parser.add_argument("--seed", type=int, default=0, help="chooses place, shape and color of the defects")
    parser.add_argument("--per-image", type=int, default=1, help="defects of each kind for each held-out photograph")
    parser.add_argument("--white", action="store_true", help="paint white what the masks leave out")
    for name, what in _SIZES.items():
        option, default = f"--{name.replace('_', '-')}", getattr(DefectSizes, name)
        parser.add_argument(option, type=float, nargs=2, default=default, metavar=("LEAST", "LARGEST"), help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sizes = DefectSizes(**{name: tuple(options.pop(name)) for name in _SIZES})
        write_painted_queries(**options, sizes=sizes)
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
