# SPDX-License-Identifier: Apache-2.0
"""Turn the weights that a paper's authors publish into what its model here loads.

    python tools/convert_checkpoint.py looking3d model.pt looking3d.pt
    python tools/convert_checkpoint.py pointad epoch_15.pth cookie.pt

The published files load without this, too. Converted, Looking3D's ``model.pt`` is a third smaller, and PointAD's
learned prompts take 0.2 MB in place of 23.
"""

import argparse
import logging
from pathlib import Path

from anomalib_pose.models.looking3d import checkpoint as looking3d_weights
from anomalib_pose.models.point_ad import checkpoint as point_ad_prompts


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    looking3d = commands.add_parser("looking3d", help="weights of Looking3D's correspondence-matching transformer")
    looking3d.add_argument("source", type=Path, help="the published model.pt")
    looking3d.add_argument("target", type=Path, help="file to write")
    looking3d.add_argument("--training", action="store_true", help="keep the moving averages, to train on")
    looking3d.set_defaults(
        run=lambda given: looking3d_weights.convert(given.source, given.target, training=given.training)
    )
    pointad = commands.add_parser("pointad", help="learned prompts of PointAD")
    pointad.add_argument("source", type=Path, help="a published epoch_15.pth")
    pointad.add_argument("target", type=Path, help="file to write")
    pointad.set_defaults(run=lambda given: point_ad_prompts.convert(given.source, given.target))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
