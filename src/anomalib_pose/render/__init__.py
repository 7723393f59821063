# SPDX-License-Identifier: Apache-2.0
"""From primitives and a camera to pixels."""

from anomalib_pose.render.backend import make_rasterizer, warmup
from anomalib_pose.render.types import Gaussians, Rasterizer, RenderOutput

__all__ = ["Gaussians", "Rasterizer", "RenderOutput", "make_rasterizer", "warmup"]
