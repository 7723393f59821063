# SPDX-License-Identifier: Apache-2.0
"""Estimate the cameras of photographs of a fitted object and write them as JSON.

    anomalib-pose localize --ckpt_path model.ckpt --data photos --output poses.json

The file is complete after every photograph, and a repeated command continues where it stopped. A photograph that
cannot be read gets an entry with its error. A pose whose search failed has a low confidence.
"""

import argparse
from pathlib import Path

from anomalib_pose.registry import scene_models

_MATCHERS = ("aliked", "xfeat", "loftr")
_SETTINGS = ("starts", "rolls", "refine_focal", "matcher", "matcher_weights")
"""Arguments of the models that can be changed after the fit."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--model",
        choices=scene_models(),
        default="",
        help="model of the checkpoint (default: as the checkpoint names it)",
    )
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of the fitted model")
    parser.add_argument("--data", type=Path, required=True, help="photograph, or folder of photographs")
    parser.add_argument(
        "--masks",
        type=Path,
        help="folder with masks of the object, white on black: masks/a.png for photos/a.jpg; not needed for "
        "photographs with transparency, nor for photographs on white if the training views were on white",
    )
    parser.add_argument("--output", type=Path, default=Path("poses.json"), help="file to write (default: %(default)s)")
    parser.add_argument(
        "--intrinsics",
        type=float,
        nargs=4,
        metavar=("FX", "FY", "CX", "CY"),
        help="intrinsics of all photographs, in pixels (default: the intrinsics of the training views)",
    )
    search = parser.add_argument_group("pose search", "default: the settings that the model was trained with")
    search.add_argument("--starts", type=int, help="number of initial poses that are refined")
    search.add_argument(
        "--rolls", type=int, help="number of in-plane rotations that are tried; 12 covers photographs at any angle"
    )
    search.add_argument("--refine_focal", action="store_true", default=None, help="estimate the focal length too")
    search.add_argument("--matcher", choices=_MATCHERS, help="feature matcher for photographs whose alignment fails")
    search.add_argument("--matcher_weights", help="file with the weights of the matcher")


def run(options: argparse.Namespace) -> None:
    """Estimate and write the cameras."""
    import torch

    from anomalib_pose.models import localization, localize_run
    from anomalib_pose.progress import show_progress
    from anomalib_pose.storage import check_output_file

    check_output_file(options.output)
    intrinsics = None
    if options.intrinsics is not None:
        fx, fy, cx, cy = options.intrinsics
        intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    settings = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    with show_progress():
        model = localization.load_fitted(options.ckpt_path, options.model, **settings)
    localize_run.localize(model, options.data, options.output, options.masks, intrinsics)
