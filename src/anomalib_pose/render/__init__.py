# SPDX-License-Identifier: Apache-2.0
"""Render primitives (Gaussians, voxels, meshes, points) from cameras to images."""

from anomalib_pose.render.backend import RasterizerName, make_rasterizer, warmup
from anomalib_pose.render.types import Gaussians, Rasterizer, RenderOutput

__all__ = ["Gaussians", "Rasterizer", "RasterizerName", "RenderOutput", "make_rasterizer", "warmup"]
