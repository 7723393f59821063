# SPDX-License-Identifier: Apache-2.0
"""Pose-agnostic and 3D anomaly detection for anomalib.

Each public name is imported at its first use, so importing the package imports neither torch nor anomalib.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from anomalib_pose import registry

if TYPE_CHECKING:  # for type checkers and editors; at run time ``_HOMES`` decides
    from anomalib_pose.data import MAD as MAD
    from anomalib_pose.data import MIP as MIP
    from anomalib_pose.data import BrokenChairs as BrokenChairs
    from anomalib_pose.data import CloudBatch as CloudBatch
    from anomalib_pose.data import CloudItem as CloudItem
    from anomalib_pose.data import EyecandiesRendered as EyecandiesRendered
    from anomalib_pose.data import MVTec3DRendered as MVTec3DRendered
    from anomalib_pose.data import PoseBatch as PoseBatch
    from anomalib_pose.data import PosedFolder as PosedFolder
    from anomalib_pose.data import PoseItem as PoseItem
    from anomalib_pose.data import Real3DADRendered as Real3DADRendered
    from anomalib_pose.data import ViewBatch as ViewBatch
    from anomalib_pose.data import ViewItem as ViewItem
    from anomalib_pose.models import PIAD as PIAD
    from anomalib_pose.models import Looking3D as Looking3D
    from anomalib_pose.models import OmniposeAD as OmniposeAD
    from anomalib_pose.models import PointAD as PointAD
    from anomalib_pose.models import SplatPose as SplatPose
    from anomalib_pose.models import estimate_pose as estimate_pose
    from anomalib_pose.plugin import register as register

_DATA = (
    "MAD",
    "MIP",
    "BrokenChairs",
    "CloudBatch",
    "CloudItem",
    "EyecandiesRendered",
    "MVTec3DRendered",
    "PoseBatch",
    "PoseItem",
    "PosedFolder",
    "Real3DADRendered",
    "ViewBatch",
    "ViewItem",
)
_HOMES = {
    **dict.fromkeys(_DATA, "anomalib_pose.data"),
    **dict.fromkeys((*registry.model_names(), "estimate_pose"), "anomalib_pose.models"),
    "register": "anomalib_pose.plugin",
}
"""Module that each public name is imported from, at its first use."""

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the registry has the names

try:
    __version__ = version("anomalib-pose")
except PackageNotFoundError:  # a source tree without installation
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
