# SPDX-License-Identifier: Apache-2.0
"""Views of an object with depth, packed into bytes."""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy import ndimage
from torch import Tensor, nn

from anomalib_pose.compare.maps import largest_around
from anomalib_pose.deploy.graph.alignment import View
from anomalib_pose.deploy.graph.fixed_point import from_fixed, to_fixed
from anomalib_pose.render import RenderOutput

_DEPTH_LEVELS = 127
_OPAQUE = 0.5
_ALPHA_STEP = 2.0**-16  # the last digits of an opacity depend on the processor; a pixel of one half must not
_JUMP = 0.04  # neighbors whose depths differ by more, as a part of the distance, show two surfaces


class PackedViews(nn.Module):
    """Views with depth and cameras.

    Numbers that the pose depends on are kept in fixed point: an export in half precision leaves integers alone.

    A view takes four bytes a pixel: color over white, depth between the view's nearest and farthest surface in seven
    bits (a step moves a surface by a hundredth of a pixel when the camera turns by five degrees), and the silhouette.

    Args:
        views: packed (N, 4, H, W), see ``pack``.
        ranges: nearest and farthest depth of each (N, 2), scene units.
        poses: camera-to-world of each (N, 4, 4).
        intrinsics: K (3, 3) of all, or of each (N, 3, 3).
        unit: scene units in the typical depth.
    """

    views: Tensor
    table: Tensor

    def __init__(
        self,
        views: UInt8[Tensor, "n 4 h w"],
        ranges: Float[Tensor, "n 2"],
        poses: Float[Tensor, "n 4 4"],
        intrinsics: Float[Tensor, "*n 3 3"],
        unit: float,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.register_buffer("views", views)
        scaled = torch.cat([poses[:, :3, :3], poses[:, :3, 3:] / unit], 2).flatten(1)
        focal = intrinsics[..., [0, 1, 0, 1], [0, 1, 2, 2]] / max(views.shape[-2:])
        numbers = torch.cat([ranges / unit, scaled, focal.expand(len(poses), 4)], 1)
        self.register_buffer("table", to_fixed(numbers))

    def __len__(self) -> int:
        """Number of views."""
        return len(self.views)

    def around(self, pose: Float[Tensor, "b 4 4"], count: int, apart: float = 0.0) -> Int[Tensor, "b n"]:
        """Indices of the views whose cameras are nearest to each pose.

        Args:
            pose: camera-to-world, in units of the typical depth.
            count: how many; all views at most.
            apart: leave out views nearer to the pose than this, in units of the typical depth.
        """
        everyone = self.pose(torch.arange(len(self), device=pose.device))
        distance = (everyone[:, :3, 3] - pose[:, None, :3, 3]).square().sum(2)
        if apart:
            distance = torch.where(distance < apart**2, torch.inf, distance)
        return distance.topk(min(count, len(self)), dim=1, largest=False).indices

    def view(self, index: Int[Tensor, " b"]) -> View:
        """Views by their indices."""
        packed = self.views.index_select(0, index).float()
        level = torch.floor(packed[:, 3] / 2)
        near, far = self.numbers(index)[:, :2, None, None].unbind(1)
        return View(packed[:, :3] / 255, near + level / _DEPTH_LEVELS * (far - near), packed[:, 3] - 2 * level)

    def numbers(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 18"]:
        """Depth range (2), pose (12) in units of the typical depth, and intrinsics (4) in units of the longer side."""
        return from_fixed(self.table.index_select(0, index))

    def pose(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 4 4"]:
        """Camera-to-world poses by their indices, in units of the typical depth."""
        upper = self.numbers(index)[:, 2:14].unflatten(1, (3, 4))
        lower = upper.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(upper.shape[0], 1, 4)
        return torch.cat([upper, lower], 1)

    def intrinsics(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 4"]:
        """Focal lengths and principal points (fx, fy, cx, cy) in pixels."""
        return self.numbers(index)[:, 14:] * max(self.views.shape[-2:])


def resampled(output: RenderOutput, rows: Tensor, columns: Tensor) -> RenderOutput:
    """Images of which rows and columns are put together to others; depth by its share of the opacity.

    Args:
        output: what is shown.
        rows: what its rows are multiplied by, from the left.
        columns: what its columns are multiplied by, from the right.
    """
    alpha = rows @ output.alpha @ columns
    depth = rows @ (output.alpha * output.depth) @ columns / alpha.clamp(min=1e-6)
    rgb = (rows @ output.rgb.movedim(-1, -3) @ columns).movedim(-3, -1)
    return RenderOutput(rgb, depth, alpha)


def pack(rgb: Tensor, depth: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """One view (4, H, W) in bytes, and its nearest and farthest depth.

    Args:
        rgb: color over white (H, W, 3).
        depth: along the optical axis (H, W), 0 where there is nothing.
        alpha: opacity (H, W).
    """
    opaque = ((alpha / _ALPHA_STEP).round() > _OPAQUE / _ALPHA_STEP) & (depth > 0)
    color = (rgb.permute(2, 0, 1).clamp(0, 1) * 255).round()
    if not bool(opaque.any()):
        return torch.cat([color, torch.zeros_like(depth)[None]]).to(torch.uint8), torch.ones(2)
    depth = _unmixed(depth, opaque)
    # Expected depth on a silhouette may lie between object and nowhere: leave the extremes out.
    sample = depth[opaque]
    limits = torch.stack([sample.kthvalue(1 + len(sample) // 1000).values, sample.kthvalue(len(sample)).values])
    indices = ndimage.distance_transform_edt(~opaque.numpy(), return_distances=False, return_indices=True)
    filled = depth[torch.from_numpy(np.asarray(indices[0])), torch.from_numpy(np.asarray(indices[1]))]
    share = (filled - limits[0]) / (limits[1] - limits[0]).clamp(min=1e-6)
    level = (share.clamp(0, 1) * _DEPTH_LEVELS).round()
    return torch.cat([color, (2 * level + opaque)[None]]).to(torch.uint8), limits


def _unmixed(depth: Tensor, opaque: Tensor) -> Tensor:
    """Depth without points in the air: a pixel between two surfaces shows a mean, and takes that which is closer to it.

    From another side such points would cover what is seen between the surfaces.
    """
    nearest = -largest_around(torch.where(opaque, -depth, -torch.inf)[None], 3)[0]
    farthest = largest_around(torch.where(opaque, depth, -torch.inf)[None], 3)[0]
    surface = torch.where(depth - nearest < farthest - depth, nearest, farthest)
    mixed = opaque & (farthest - nearest > _JUMP * depth)
    return torch.where(mixed, surface, depth)
