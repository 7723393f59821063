# SPDX-License-Identifier: Apache-2.0
r"""Hold out photographs of a posed object with masks, and paint defects onto copies of them.

    anomalib-pose draw-defects mary_rose data/tankard --every 8 --seed 1

The command holds out every eighth photograph of mary_rose/transforms.json and writes it four times: unchanged, with a
stain, with a missing piece and with a scratch. The other photographs are the training views. Train on them and test:

    anomalib train --config configs/splatpose_folder.yaml --data.init_args.root data/tankard \
        --data.init_args.query_dir queries --data.init_args.mask_dir ground_truth

The queries have no masks of the object. With --white, which paints the background of all photographs white, their poses
are estimated much better. The true poses of the queries go to data/_hidden/tankard.json, to measure pose errors with.
"""

import argparse

_SIZES = {
    "stain_area": "range of the area of a stain, as fractions of the object's pixels",
    "missing_area": "range of the area of a missing piece, as fractions of the object's pixels",
    "scratch_length": "range of the length of a scratch, as fractions of the square root of the object's area",
    "scratch_width": "range of the width of a scratch, as fractions of the square root of the object's area",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", help="folder with transforms.json and masks of the object")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--every", type=int, default=8, help="hold out every n-th photograph")
    parser.add_argument("--seed", type=int, default=0, help="seed of place, shape and color of the defects")
    parser.add_argument("--per-image", type=int, default=1, help="defects of each kind for each held-out photograph")
    parser.add_argument("--white", action="store_true", help="paint everything outside the masks white")
    for name, text in _SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, nargs=2, metavar=("LEAST", "LARGEST"), help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")


def run(options: argparse.Namespace) -> None:
    """Write the queries."""
    from anomalib_pose.sample_data.painted import DefectSizes
    from anomalib_pose.sample_data.painted_queries import write_painted_queries

    arguments = vars(options)
    ranges = {name: arguments.pop(name) for name in _SIZES}
    sizes = DefectSizes(**{name: tuple(values) for name, values in ranges.items() if values is not None})
    write_painted_queries(**arguments, sizes=sizes)
