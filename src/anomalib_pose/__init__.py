# SPDX-License-Identifier: Apache-2.0
"""Pose-agnostic and 3D anomaly detection for anomalib.

The public names are loaded when they are first used: importing this package imports neither torch nor anomalib.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_pose.data import (
        MAD,
        MIP,
        BrokenChairs,
        CloudBatch,
        CloudItem,
        EyecandiesRendered,
        MVTec3DRendered,
        PoseBatch,
        PosedFolder,
        PoseItem,
        Real3DADRendered,
        ViewBatch,
        ViewItem,
    )
    from anomalib_pose.models import PIAD, Looking3D, OmniposeAD, PointAD, SplatPose, estimate_pose
    from anomalib_pose.plugin import register

__all__ = [
    "MAD",
    "MIP",
    "PIAD",
    "BrokenChairs",
    "CloudBatch",
    "CloudItem",
    "EyecandiesRendered",
    "Looking3D",
    "MVTec3DRendered",
    "OmniposeAD",
    "PointAD",
    "PoseBatch",
    "PoseItem",
    "PosedFolder",
    "Real3DADRendered",
    "SplatPose",
    "ViewBatch",
    "ViewItem",
    "__version__",
    "estimate_pose",
    "register",
]

_HOMES = {
    "CloudBatch": "anomalib_pose.data",
    "CloudItem": "anomalib_pose.data",
    "EyecandiesRendered": "anomalib_pose.data",
    "BrokenChairs": "anomalib_pose.data",
    "Looking3D": "anomalib_pose.models",
    "MAD": "anomalib_pose.data",
    "MIP": "anomalib_pose.data",
    "MVTec3DRendered": "anomalib_pose.data",
    "OmniposeAD": "anomalib_pose.models",
    "PIAD": "anomalib_pose.models",
    "PointAD": "anomalib_pose.models",
    "PoseBatch": "anomalib_pose.data",
    "PoseItem": "anomalib_pose.data",
    "PosedFolder": "anomalib_pose.data",
    "Real3DADRendered": "anomalib_pose.data",
    "SplatPose": "anomalib_pose.models",
    "ViewBatch": "anomalib_pose.data",
    "ViewItem": "anomalib_pose.data",
    "estimate_pose": "anomalib_pose.models",
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
