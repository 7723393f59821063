# SPDX-License-Identifier: Apache-2.0
"""An object that can be rendered, and how it is fitted to posed images."""

from anomalib_pose.scene.fit import FitResult, FitSettings, fit_gaussians
from anomalib_pose.scene.foreground import white_foreground
from anomalib_pose.scene.gaussian_scene import GaussianScene
from anomalib_pose.scene.ply import load_ply, save_ply
from anomalib_pose.scene.protocol import Scene

__all__ = [
    "FitResult",
    "FitSettings",
    "GaussianScene",
    "Scene",
    "fit_gaussians",
    "load_ply",
    "save_ply",
    "white_foreground",
]
