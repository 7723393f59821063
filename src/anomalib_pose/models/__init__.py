# SPDX-License-Identifier: Apache-2.0
"""The models, each imported at its first use, and pose estimation with a fitted model."""

from typing import TYPE_CHECKING, Any

from anomalib_pose import registry

if TYPE_CHECKING:  # for type checkers and editors; at run time the registry decides
    from anomalib_pose.models.localization import estimate_pose as estimate_pose
    from anomalib_pose.models.looking3d import Looking3D as Looking3D
    from anomalib_pose.models.omnipose_ad import OmniposeAD as OmniposeAD
    from anomalib_pose.models.piad import PIAD as PIAD
    from anomalib_pose.models.point_ad import PointAD as PointAD
    from anomalib_pose.models.splat_pose import SplatPose as SplatPose

__all__ = [*registry.model_names(), "estimate_pose"]  # noqa: PLE0604 - the registry has the names


def __getattr__(name: str) -> Any:
    if name == "estimate_pose":
        from anomalib_pose.models.localization import estimate_pose

        return estimate_pose
    if name in registry.model_names():
        return registry.load_model(name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
