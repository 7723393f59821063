# SPDX-License-Identifier: Apache-2.0
"""What photographs show beyond renderings, for detectors that draw."""

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from anomalib_pose.deploy.graph.alignment import project, unproject
from anomalib_pose.deploy.graph.packed_views import PackedViews, pack, resampled
from anomalib_pose.deploy.graph.resample import sample, window_matrix
from anomalib_pose.deploy.graph.view_synthesis import Synthesis
from anomalib_pose.deploy.settings import BYTES_A_PIXEL
from anomalib_pose.geometry import farthest_point_sampling, rigid_inverse
from anomalib_pose.render import RenderOutput
from anomalib_pose.scene import NearbyViews
from anomalib_pose.scene.nearby_views import DEPTH_TOLERANCE, WEIGHT_OFFSET

_BORDER = (0.375, 4.0)  # opacity from which something is added, and how fast


class ViewCorrections(PackedViews):
    """Adds to drawings what the nearest photographs show beyond the renderings at their poses; see ``NearbyViews``.

    Their differences are kept as colors: a half and half of the difference.

    Args:
        views: packed (N, 4, H, W), see ``pack``.
        ranges: nearest and farthest depth of each (N, 2), scene units.
        poses: camera-to-world of each (N, 4, 4).
        intrinsics: K of each (N, 3, 3).
        unit: scene units that ``forward`` counts in.
        center: of the object (3,), scene units.
        count: photographs that a drawing is corrected by.
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
    def of(cls, nearby: NearbyViews, unit: float, scale: float, most: int) -> "ViewCorrections":
        """What photographs show, in the size of what is drawn.

        Args:
            nearby: the model's.
            unit: see the class.
            scale: pixels that are drawn along a side for one of the photographs.
            most: photographs that are kept, spread over the directions.
        """
        places = functional.normalize(nearby.camera_to_world[:, :3, 3] - nearby.center, dim=1)
        chosen = torch.arange(len(nearby))
        if len(nearby) > most:
            chosen = farthest_point_sampling(places.double(), most).cpu()
        length, breadth = nearby.depths.shape[1:]
        height, width = _resized(nearby, scale)
        like = torch.zeros(())
        rows, columns = window_matrix(length, height, 0, 1, like), window_matrix(breadth, width, 0, 1, like).T
        views, ranges = [], []
        for index in chosen.tolist():
            depth = nearby.depths[index].cpu().float()
            difference = nearby.residual_image(index).cpu().permute(1, 2, 0)
            shown = resampled(RenderOutput(difference, depth, (depth > 0).float()), rows, columns)
            packed, limits = pack(0.5 + shown.rgb / 2, shown.depth, shown.alpha)
            views.append(packed)
            ranges.append(limits)
        factors = torch.tensor([width / breadth, height / length, 1.0])
        return cls(
            torch.stack(views),
            torch.stack(ranges),
            nearby.camera_to_world[chosen].cpu(),
            nearby.intrinsics[chosen].cpu() * factors[:, None],
            unit,
            nearby.center.cpu(),
            nearby.count,
        )

    def forward(
        self, seen: Synthesis, pose: Float[Tensor, "b 4 4"], intrinsics: Float[Tensor, "b 4"]
    ) -> Float[Tensor, "b 3 h w"]:
        """Corrected colors of what cameras see.

        Args:
            seen: what is drawn.
            pose: camera-to-world, in multiples of ``unit``.
            intrinsics: (fx, fy, cx, cy) in pixels.
        """
        away, index = self._nearest(pose)
        back = rigid_inverse(self.pose(index.flatten())) @ pose.repeat_interleave(self.count, 0)
        surface = unproject(seen.depth, intrinsics).flatten(2).repeat_interleave(self.count, 0)
        view, shape = self.view(index.flatten()), seen.depth.shape[1:]
        points, uv = project(back, surface, self.intrinsics(index.flatten()))
        maps = torch.cat([view.rgb, view.alpha[:, None], view.depth[:, None]], 1)
        found = sample(maps, uv.unflatten(2, shape))
        depth = points[:, 2].unflatten(1, shape)
        apart = (depth - found[:, 4]).abs() / (DEPTH_TOLERANCE * depth.clamp(min=1e-6))
        same = (2 - 2 * apart).clamp(0, 1) * (2 * found[:, 3] - 1).clamp(min=0)
        weight = same.unflatten(0, (-1, self.count)) / (away + WEIGHT_OFFSET)[:, :, None, None]
        difference = (2 * found[:, :3] - 1).unflatten(0, (-1, self.count))
        mean = (weight[:, :, None] * difference).sum(1) / (weight.sum(1)[:, None] + 1e-6)
        opaque = ((seen.alpha - _BORDER[0]) * _BORDER[1]).clamp(0, 1) * seen.alpha
        return (seen.rgb + opaque[:, None] * mean).clamp(0, 1)

    def _nearest(self, pose: Tensor) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
        """One minus the cosine between directions, and the index, of the photographs from the most similar ones."""
        mine = functional.normalize(pose[:, :3, 3] - self.center, dim=1)
        cosine = (mine[:, None] * self.directions).sum(2).topk(self.count, dim=1)
        return 1 - cosine.values, cosine.indices


def corrections_megabytes(nearby: NearbyViews, scale: float, most: int) -> float:
    """Size of ``ViewCorrections.of`` in units of 10^6 bytes.

    Args:
        nearby: the model's.
        scale: pixels that are drawn along a side for one of the photographs.
        most: photographs that are kept.
    """
    return min(most, len(nearby)) * BYTES_A_PIXEL * math.prod(_resized(nearby, scale)) / 1e6


def _resized(nearby: NearbyViews, scale: float) -> tuple[int, int]:
    height, width = (max(1, round(side * scale)) for side in nearby.depths.shape[1:])
    return height, width
