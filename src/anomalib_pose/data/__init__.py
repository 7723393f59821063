# SPDX-License-Identifier: Apache-2.0
"""Posed images, queries with reference views, and rendered clouds as anomalib items, batches and datamodules.

Names are looked up on first use: ``anomalib_pose.data.sample`` draws its data sets without waiting for anomalib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_pose.data.broken_chairs import BrokenChairs
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
    from anomalib_pose.data.queries import evaluation_view, query_on_white, read_query
    from anomalib_pose.data.real3d_rendered import Real3DADRendered
    from anomalib_pose.data.reference_files import find_reference_views, read_views, spread_views
    from anomalib_pose.data.transforms_json import PosedFrame, read_transforms
    from anomalib_pose.data.view_batch import ViewBatch, ViewItem

__all__ = [
    "MAD",
    "MIP",
    "BrokenChairs",
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
    "ViewBatch",
    "ViewItem",
    "evaluation_view",
    "find_reference_views",
    "query_on_white",
    "read_colmap",
    "read_colmap_points",
    "read_query",
    "read_transforms",
    "read_views",
    "spread_views",
]

_MODULES = {
    "CloudBatch": "cloud_dataclasses",
    "CloudDataset": "cloud_dataset",
    "CloudItem": "cloud_dataclasses",
    "EyecandiesRendered": "eyecandies_rendered",
    "BrokenChairs": "broken_chairs",
    "MAD": "mad",
    "MIP": "mip",
    "MVTec3DRendered": "mvtec3d_rendered",
    "PoseBatch": "dataclasses",
    "PoseItem": "dataclasses",
    "PosedDataset": "posed_dataset",
    "PosedFolder": "posed_folder",
    "PosedFrame": "transforms_json",
    "Real3DADRendered": "real3d_rendered",
    "ViewBatch": "view_batch",
    "ViewItem": "view_batch",
    "evaluation_view": "queries",
    "find_reference_views": "reference_files",
    "query_on_white": "queries",
    "read_colmap": "colmap",
    "read_colmap_points": "colmap",
    "read_query": "queries",
    "read_transforms": "transforms_json",
    "read_views": "reference_files",
    "spread_views": "reference_files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
