# SPDX-License-Identifier: Apache-2.0
"""Convert the weights that the authors of Looking3D or PointAD publish to smaller files.

    anomalib-pose convert-checkpoint looking3d model.pt looking3d.pt
    anomalib-pose convert-checkpoint pointad epoch_15.pth cookie.pt

The models also load the published files. Conversion makes Looking3D's model.pt smaller by a third, and PointAD's
learned prompts 0.2 MB instead of 23 MB.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    looking3d = kinds.add_parser("looking3d", help="weights of Looking3D's correspondence-matching transformer")
    looking3d.add_argument("source", type=Path, help="the published model.pt")
    looking3d.add_argument("target", type=Path, help="file to write")
    looking3d.add_argument(
        "--training", action="store_true", help="keep the moving averages, which further training needs"
    )
    pointad = kinds.add_parser("pointad", help="learned prompts of PointAD")
    pointad.add_argument("source", type=Path, help="a published epoch_15.pth")
    pointad.add_argument("target", type=Path, help="file to write")


def run(options: argparse.Namespace) -> None:
    """Convert one file."""
    if options.kind == "looking3d":
        from anomalib_pose.models.looking3d import checkpoint as looking3d_weights

        looking3d_weights.convert(options.source, options.target, training=options.training)
        return
    from anomalib_pose.models.point_ad import checkpoint as point_ad_prompts

    point_ad_prompts.convert(options.source, options.target)
