# SPDX-License-Identifier: Apache-2.0
"""Posed images and rendered clouds as anomalib items, batches and datamodules.

Names are looked up on first use: ``anomalib_pose.data.sample`` draws its data sets without waiting for anomalib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_pose.data.cloud_dataclasses import CloudBatch, CloudItem
    from anomalib_pose.data.cloud_dataset import CloudDataset
    from anomalib_pose.data.colmap import read_colmap, read_colmap_points
    from anomalib_pose.data.dataclasses import PoseBatch, PoseItem
    from anomalib_pose.data.eyecandies_rendered import EyecandiesRendered
    from anomalib_pose.data.mad import MAD
    from anomalib_pose.data.mip import MIP
    from anomalib_pose.data.mvtec3d_rendered import MVTec3DRendered
    from anomalib_pose.data.posed_dataset import PosedDataset
    from anomalib_pose.data.posed_folder import PosedFolder
    from anomalib_pose.data.real3d_rendered import Real3DADRendered
    from anomalib_pose.data.transforms_json import PosedFrame, read_transforms

__all__ = [
    "MAD",
    "MIP",
    "CloudBatch",
    "CloudDataset",
    "CloudItem",
    "EyecandiesRendered",
    "MVTec3DRendered",
    "PoseBatch",
    "PoseItem",
    "PosedDataset",
    "PosedFolder",
    "PosedFrame",
    "Real3DADRendered",
    "read_colmap",
    "read_colmap_points",
    "read_transforms",
]

_MODULES = {
    "CloudBatch": "cloud_dataclasses",
    "CloudDataset": "cloud_dataset",
    "CloudItem": "cloud_dataclasses",
    "EyecandiesRendered": "eyecandies_rendered",
    "MAD": "mad",
    "MIP": "mip",
    "MVTec3DRendered": "mvtec3d_rendered",
    "PoseBatch": "dataclasses",
    "PoseItem": "dataclasses",
    "PosedDataset": "posed_dataset",
    "PosedFolder": "posed_folder",
    "PosedFrame": "transforms_json",
    "Real3DADRendered": "real3d_rendered",
    "read_colmap": "colmap",
    "read_colmap_points": "colmap",
    "read_transforms": "transforms_json",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
