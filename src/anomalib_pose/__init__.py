# SPDX-License-Identifier: Apache-2.0
"""Pose-agnostic and 3D anomaly detection for anomalib.

The public names are loaded when they are first used: importing this package imports neither torch nor anomalib.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_pose.data import MAD, MIP, PoseBatch, PosedFolder, PoseItem
    from anomalib_pose.models import PIAD, Looking3D, OmniposeAD, SplatPose
    from anomalib_pose.plugin import register

__all__ = [
    "MAD",
    "MIP",
    "PIAD",
    "Looking3D",
    "OmniposeAD",
    "PoseBatch",
    "PoseItem",
    "PosedFolder",
    "SplatPose",
    "__version__",
    "register",
]

_HOMES = {
    "Looking3D": "anomalib_pose.models",
    "MAD": "anomalib_pose.data",
    "MIP": "anomalib_pose.data",
    "OmniposeAD": "anomalib_pose.models",
    "PIAD": "anomalib_pose.models",
    "PoseBatch": "anomalib_pose.data",
    "PoseItem": "anomalib_pose.data",
    "PosedFolder": "anomalib_pose.data",
    "SplatPose": "anomalib_pose.models",
    "register": "anomalib_pose.plugin",
}

try:
    __version__ = version("anomalib-pose")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
