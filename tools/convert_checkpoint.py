# SPDX-License-Identifier: Apache-2.0
"""Turn the weights that a paper's authors publish into what its model here loads.

    python tools/convert_checkpoint.py looking3d model.pt looking3d.pt

The published ``model.pt`` of Looking3D loads without this, too; converted it is a third smaller.
"""

import argparse
import logging
from pathlib import Path

from anomalib_pose.models.looking3d.checkpoint import convert


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    looking3d = commands.add_parser("looking3d", help="weights of Looking3D's correspondence-matching transformer")
    looking3d.add_argument("source", type=Path, help="the published model.pt")
    looking3d.add_argument("target", type=Path, help="file to write")
    looking3d.add_argument("--training", action="store_true", help="keep the moving averages, to train on")
    looking3d.set_defaults(run=lambda given: convert(given.source, given.target, training=given.training))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
