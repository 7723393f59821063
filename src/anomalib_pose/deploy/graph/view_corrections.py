# SPDX-License-Identifier: Apache-2.0
"""Correction of rasterized references by the residuals of nearby photographs.

Twin: ``anomalib_pose.scene.nearby_views.NearbyViews.correct_rendering``. The corrected images differ from the twin's by
less than 15 % of the correction (root mean square): this graph interpolates depths, which the twin does not, and its
weights are soft.
"""

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from anomalib_pose.deploy.graph.alignment import project, unproject
from anomalib_pose.deploy.graph.packed_views import PackedViews, pack_view, resample_rendering
from anomalib_pose.deploy.graph.resample import sample, window_matrix
from anomalib_pose.deploy.graph.view_synthesis import GraphRendering
from anomalib_pose.deploy.settings import BYTES_A_PIXEL
from anomalib_pose.geometry import farthest_point_sampling, rigid_inverse
from anomalib_pose.render import RenderOutput
from anomalib_pose.scene import NearbyViews
from anomalib_pose.scene.nearby_views import DEPTH_TOLERANCE, WEIGHT_OFFSET

_OUTLINE = (0.375, 4.0)  # opacity from which a correction is added, and the slope with which it sets in


class ViewCorrections(PackedViews):
    """Adds the residuals of the nearest photographs to rasterized references; see ``NearbyViews``.

    A residual r is the photograph minus the rendering at its pose. It is stored as a color, (1 + r) / 2.

    Args:
        views: packed residual images (N, 4, H, W), see ``pack_view``.
        ranges: nearest and farthest depth of each photograph (N, 2), scene units.
        poses: camera-to-world of each photograph (N, 4, 4).
        intrinsics: K of each photograph (N, 3, 3).
        unit: length of the unit of ``forward`` in scene units.
        center: middle of the object (3,), scene units.
        count: photographs that correct one reference.
    """

    directions: Tensor
    center: Tensor

    def __init__(
        self,
        views: UInt8[Tensor, "n 4 h w"],
        ranges: Float[Tensor, "n 2"],
        poses: Float[Tensor, "n 4 4"],
        intrinsics: Float[Tensor, "n 3 3"],
        unit: float,
        center: Float[Tensor, "3"],
        count: int,
    ) -> None:
        super().__init__(views, ranges, poses, intrinsics, unit)
        self.count = min(count, len(views))
        self.register_buffer("directions", functional.normalize(poses[:, :3, 3] - center, dim=1))
        self.register_buffer("center", center / unit)

    @classmethod
    @torch.no_grad()
    def from_nearby(cls, nearby: NearbyViews, unit: float, scale: float, max_count: int) -> "ViewCorrections":
        """Pack the residual images of a model, at the size of the rasterized references.

        Args:
            nearby: the model's photographs and residuals.
            unit: see the class.
            scale: pixels of a reference along a side for one pixel of a photograph.
            max_count: maximum number of photographs; they are spread over the viewing directions.
        """
        directions = functional.normalize(nearby.camera_to_world[:, :3, 3] - nearby.center, dim=1)
        selected = torch.arange(len(nearby))
        if len(nearby) > max_count:
            selected = farthest_point_sampling(directions.double(), max_count).cpu()
        from_height, from_width = nearby.depths.shape[1:]
        height, width = _scaled_size(nearby, scale)
        like = torch.zeros(())
        rows, columns = window_matrix(from_height, height, 0, 1, like), window_matrix(from_width, width, 0, 1, like).T
        views, ranges = [], []
        for index in selected.tolist():
            depth = nearby.depths[index].cpu().float()
            residual = nearby.residual_image(index).cpu().permute(1, 2, 0)
            resampled = resample_rendering(RenderOutput(residual, depth, (depth > 0).float()), rows, columns)
            packed, limits = pack_view(0.5 + resampled.rgb / 2, resampled.depth, resampled.alpha)
            views.append(packed)
            ranges.append(limits)
        factors = torch.tensor([width / from_width, height / from_height, 1.0])
        return cls(
            torch.stack(views),
            torch.stack(ranges),
            nearby.camera_to_world[selected].cpu(),
            nearby.intrinsics[selected].cpu() * factors[:, None],
            unit,
            nearby.center.cpu(),
            nearby.count,
        )

    def forward(
        self, rendering: GraphRendering, pose: Float[Tensor, "b 4 4"], pinhole: Float[Tensor, "b 4"]
    ) -> Float[Tensor, "b 3 h w"]:
        """Return the corrected colors of rasterized references.

        Args:
            rendering: the rasterized references.
            pose: camera-to-world, in multiples of ``unit``.
            pinhole: (fx, fy, cx, cy) in pixels.
        """
        angular_distance, index = self._nearest(pose)
        to_view = rigid_inverse(self.pose(index.flatten())) @ pose.repeat_interleave(self.count, 0)
        surface = unproject(rendering.depth, pinhole).flatten(2).repeat_interleave(self.count, 0)
        view, shape = self.view(index.flatten()), rendering.depth.shape[1:]
        points, uv = project(to_view, surface, self.pinhole(index.flatten()))
        maps = torch.cat([view.rgb, view.alpha[:, None], view.depth[:, None]], 1)
        warped = sample(maps, uv.unflatten(2, shape))
        depth = points[:, 2].unflatten(1, shape)
        depth_error = (depth - warped[:, 4]).abs() / (DEPTH_TOLERANCE * depth.clamp(min=1e-6))
        same_surface = (2 - 2 * depth_error).clamp(0, 1) * (2 * warped[:, 3] - 1).clamp(min=0)
        weight = same_surface.unflatten(0, (-1, self.count)) / (angular_distance + WEIGHT_OFFSET)[:, :, None, None]
        residual = (2 * warped[:, :3] - 1).unflatten(0, (-1, self.count))
        mean = (weight[:, :, None] * residual).sum(1) / (weight.sum(1)[:, None] + 1e-6)
        opacity = ((rendering.alpha - _OUTLINE[0]) * _OUTLINE[1]).clamp(0, 1) * rendering.alpha
        return (rendering.rgb + opacity[:, None] * mean).clamp(0, 1)

    def _nearest(self, pose: Tensor) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
        """Return one minus the cosine to the photographs from the most similar directions, and their indices."""
        direction = functional.normalize(pose[:, :3, 3] - self.center, dim=1)
        cosine = (direction[:, None] * self.directions).sum(2).topk(self.count, dim=1)
        return 1 - cosine.values, cosine.indices


def corrections_megabytes(nearby: NearbyViews, scale: float, max_count: int) -> float:
    """Compute the size of ``ViewCorrections.from_nearby`` in units of 10^6 bytes.

    Args:
        nearby: the model's photographs and residuals.
        scale: pixels of a reference along a side for one pixel of a photograph.
        max_count: maximum number of photographs.
    """
    return min(max_count, len(nearby)) * BYTES_A_PIXEL * math.prod(_scaled_size(nearby, scale)) / 1e6


def _scaled_size(nearby: NearbyViews, scale: float) -> tuple[int, int]:
    height, width = (max(1, round(side * scale)) for side in nearby.depths.shape[1:])
    return height, width
