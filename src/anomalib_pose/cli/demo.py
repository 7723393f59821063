# SPDX-License-Identifier: Apache-2.0
"""Train and test SplatPose on a small sample data set: five minutes on two cores without a GPU.

    anomalib-pose demo

The command writes a brick-built toy to sample/MAD if that folder has none. Then it runs "anomalib train" with the
configuration splatpose_sample.yaml, and prints image metrics, pixel metrics and pose errors. Checkpoint and heat maps
go to results/. Arguments after -- go to "anomalib train":

    anomalib-pose demo -- --model.init_args.steps 500
"""

import argparse
from pathlib import Path

CATEGORY = "toy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--root", type=Path, default=Path("sample/MAD"), help="folder of the sample data set (default: %(default)s)"
    )
    parser.add_argument(
        "train_arguments", nargs="*", metavar="-- ARGUMENT", help='further arguments of "anomalib train"'
    )


def run(options: argparse.Namespace) -> None:
    """Write the data set if it does not exist, then train and test."""
    from anomalib.cli import AnomalibCLI

    from anomalib_pose.cli.configs import configs_folder
    from anomalib_pose.plugin import register
    from anomalib_pose.sample_data import write_mad

    if not (options.root / CATEGORY).is_dir():
        write_mad(options.root, CATEGORY, seed=0, size=160, test_good=10, test_per_defect=5)
    register()
    config = configs_folder() / "splatpose_sample.yaml"
    AnomalibCLI(
        ["train", "--config", str(config), "--data.init_args.root", str(options.root), *options.train_arguments]
    )
