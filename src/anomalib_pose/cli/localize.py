# SPDX-License-Identifier: Apache-2.0
"""The command ``anomalib-pose``: anomalib's own command line with the plug-ins registered, and ``localize``.

It takes what ``anomalib`` takes, which is needed only where the automatic registration is switched off. The one
sub-command of its own finds the cameras of photographs and nothing else: ``anomalib-pose localize --help``.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from anomalib_pose.registry import scene_models

_SETTINGS = ("starts", "rolls", "refine_focal", "matcher", "matcher_weights")
"""Arguments of the models that can be chosen anew for a fitted one."""


def main() -> None:
    """Localize photographs, or register the installed plug-ins and run anomalib's command line, on ``sys.argv``."""
    if sys.argv[1:2] == ["localize"]:
        localize(sys.argv[2:])
        return
    from anomalib.cli.cli import main as anomalib_main

    from anomalib_pose.plugin import register

    register()
    anomalib_main()


def localize(arguments: Sequence[str]) -> None:
    """Write the cameras of photographs of a fitted object as JSON.

    Args:
        arguments: of the command line, without the sub-command's name.

    Raises:
        SystemExit: with status 2 if the arguments are wrong, 1 if a file is; the reason is on standard error.
    """
    parser = _localize_parser()
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("anomalib_pose").setLevel(logging.INFO)

    import torch

    from anomalib_pose.models import localization

    intrinsics = None
    if chosen.intrinsics is not None:
        fx, fy, cx, cy = chosen.intrinsics
        intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    try:
        given = {name: getattr(chosen, name) for name in _SETTINGS if getattr(chosen, name) is not None}
        model = localization.load_fitted(chosen.ckpt_path, chosen.model, **given)
        localization.localize(model, chosen.data, chosen.output, chosen.masks, intrinsics)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: error: {error}\n")


def _localize_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "anomalib-pose localize", description="Find the cameras of photographs of a fitted object; write them as JSON."
    )
    parser.add_argument("--model", choices=scene_models(), default="", help="model of the checkpoint; not needed")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoint of the fitted model")
    parser.add_argument("--data", type=Path, required=True, help="photograph, or folder of photographs")
    parser.add_argument(
        "--masks",
        type=Path,
        help="folder with masks of the object, white on black: masks/a.png for photos/a.jpg; not needed for "
        "photographs with transparency, nor on white if the object was trained on white",
    )
    parser.add_argument("--output", type=Path, default=Path("poses.json"), help="file to write (default: %(default)s)")
    parser.add_argument(
        "--intrinsics",
        type=float,
        nargs=4,
        metavar=("FX", "FY", "CX", "CY"),
        help="of all photographs, in their pixels; the training views' if not given",
    )
    search = parser.add_argument_group("search", "the model's own settings if not given")
    search.add_argument("--starts", type=int, help="views that the alignment starts from")
    search.add_argument("--rolls", type=int, help="turns of the camera that are tried; 12 for photographs at any angle")
    search.add_argument("--refine_focal", action="store_true", default=None, help="find the focal length too")
    search.add_argument("--matcher", help="aliked, xfeat or loftr: features for what the alignment does not find")
    search.add_argument("--matcher_weights", help="file with the matcher's weights")
    return parser


if __name__ == "__main__":
    main()
