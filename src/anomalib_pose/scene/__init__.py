# SPDX-License-Identifier: Apache-2.0
"""Scenes: fitted objects that can be rendered, and their fits to posed images."""

from anomalib_pose.scene.fit import FitResult, FitSettings, fit_gaussians
from anomalib_pose.scene.foreground import white_foreground
from anomalib_pose.scene.gaussian_scene import GaussianScene, scene_rasterizer
from anomalib_pose.scene.level_of_detail import reduced_scene, sort_by_contribution
from anomalib_pose.scene.mlp_fit import MlpFitSettings, fit_mlp
from anomalib_pose.scene.mlp_scene import MlpScene
from anomalib_pose.scene.nearby_views import CorrectedScene, NearbyViews
from anomalib_pose.scene.ply import load_ply, save_ply
from anomalib_pose.scene.protocol import PixelScene, ReflectiveScene, Scene, is_reflective
from anomalib_pose.scene.settings import FitRecipe
from anomalib_pose.scene.voxel_fit import VoxelFitSettings, fit_voxels
from anomalib_pose.scene.voxel_scene import VoxelScene

__all__ = [
    "CorrectedScene",
    "FitRecipe",
    "FitResult",
    "FitSettings",
    "GaussianScene",
    "MlpFitSettings",
    "MlpScene",
    "NearbyViews",
    "PixelScene",
    "ReflectiveScene",
    "Scene",
    "VoxelFitSettings",
    "VoxelScene",
    "fit_gaussians",
    "fit_mlp",
    "fit_voxels",
    "is_reflective",
    "load_ply",
    "reduced_scene",
    "save_ply",
    "scene_rasterizer",
    "sort_by_contribution",
    "white_foreground",
]
