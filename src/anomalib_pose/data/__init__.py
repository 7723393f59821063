# SPDX-License-Identifier: Apache-2.0
"""Posed images, queries with reference views, and rendered point clouds as anomalib items, batches and datamodules.

Names are imported on first use, so that ``anomalib_pose.sample_data`` writes its data sets without importing anomalib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_pose.data.point_cloud.dataclasses import CloudBatch, CloudItem
    from anomalib_pose.data.point_cloud.dataset import CloudDataset
    from anomalib_pose.data.point_cloud.eyecandies import EyecandiesRendered
    from anomalib_pose.data.point_cloud.mvtec3d import MVTec3DRendered
    from anomalib_pose.data.point_cloud.real3d import Real3DADRendered
    from anomalib_pose.data.posed.colmap import read_colmap, read_colmap_points
    from anomalib_pose.data.posed.dataclasses import PoseBatch, PoseItem
    from anomalib_pose.data.posed.dataset import PosedDataset
    from anomalib_pose.data.posed.mad import MAD
    from anomalib_pose.data.posed.mip import MIP
    from anomalib_pose.data.posed.posed_folder import PosedFolder
    from anomalib_pose.data.posed.transforms_json import PosedFrame, read_transforms
    from anomalib_pose.data.reference_views.broken_chairs import BrokenChairs
    from anomalib_pose.data.reference_views.dataclasses import ViewBatch, ViewItem
    from anomalib_pose.data.reference_views.files import find_reference_views, read_views, spread_views
    from anomalib_pose.data.reference_views.queries import evaluation_view, query_on_white, read_query

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
    "CloudBatch": "point_cloud.dataclasses",
    "CloudDataset": "point_cloud.dataset",
    "CloudItem": "point_cloud.dataclasses",
    "EyecandiesRendered": "point_cloud.eyecandies",
    "BrokenChairs": "reference_views.broken_chairs",
    "MAD": "posed.mad",
    "MIP": "posed.mip",
    "MVTec3DRendered": "point_cloud.mvtec3d",
    "PoseBatch": "posed.dataclasses",
    "PoseItem": "posed.dataclasses",
    "PosedDataset": "posed.dataset",
    "PosedFolder": "posed.posed_folder",
    "PosedFrame": "posed.transforms_json",
    "Real3DADRendered": "point_cloud.real3d",
    "ViewBatch": "reference_views.dataclasses",
    "ViewItem": "reference_views.dataclasses",
    "evaluation_view": "reference_views.queries",
    "find_reference_views": "reference_views.files",
    "query_on_white": "reference_views.queries",
    "read_colmap": "posed.colmap",
    "read_colmap_points": "posed.colmap",
    "read_query": "reference_views.queries",
    "read_transforms": "posed.transforms_json",
    "read_views": "reference_views.files",
    "spread_views": "reference_views.files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
