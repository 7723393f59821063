# SPDX-License-Identifier: Apache-2.0
"""Views of an object with depth and cameras, packed into four bytes a pixel.

Twin: the rendering that a view is packed from (``anomalib_pose.scene.Scene.render``). An unpacked view agrees with it
to 5e-3 in color and, away from depth edges, to 0.02 scene units in depth.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from scipy import ndimage
from torch import Tensor, nn

from anomalib_pose.compare.maps import largest_around
from anomalib_pose.deploy.graph.alignment import DepthViews
from anomalib_pose.deploy.graph.fixed_point import from_fixed, to_fixed
from anomalib_pose.render import RenderOutput

_DEPTH_LEVELS = 127
_OPAQUE = 0.5
_ALPHA_STEP = 2.0**-16  # the last digits of an opacity depend on the processor; the silhouette must not
_DEPTH_EDGE = 0.04  # neighbors whose depths differ by more, as a fraction of the distance, show two surfaces


class PackedViews(nn.Module):
    """Views with depth and cameras as buffers.

    Numbers that the pose depends on are stored in fixed point, because an export in half precision leaves integers
    alone.

    A pixel takes four bytes: three of color over white, and one with the depth in seven bits and the silhouette in one
    bit. Depth levels divide the range between the view's nearest and farthest surface. One level moves a surface by a
    hundredth of a pixel when the camera turns by five degrees.

    Args:
        views: packed views (N, 4, H, W), see ``pack_view``.
        ranges: nearest and farthest depth of each view (N, 2), scene units.
        poses: camera-to-world of each view (N, 4, 4).
        intrinsics: K (3, 3) of all views, or of each view (N, 3, 3).
        unit: the typical depth in scene units; the graph measures lengths in this unit.
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
        scaled_poses = torch.cat([poses[:, :3, :3], poses[:, :3, 3:] / unit], 2).flatten(1)
        pinhole = intrinsics[..., [0, 1, 0, 1], [0, 1, 2, 2]] / max(views.shape[-2:])
        table = torch.cat([ranges / unit, scaled_poses, pinhole.expand(len(poses), 4)], 1)
        self.register_buffer("table", to_fixed(table))

    def __len__(self) -> int:
        """Return the number of views."""
        return len(self.views)

    def nearest_cameras(
        self, pose: Float[Tensor, "b 4 4"], count: int, min_distance: float = 0.0
    ) -> Int[Tensor, "b n"]:
        """Return the indices of the views whose cameras are nearest to each pose.

        Args:
            pose: camera-to-world, in units of the typical depth.
            count: number of views; at most all of them.
            min_distance: leave out views nearer to the pose than this, in units of the typical depth.
        """
        poses = self.pose(torch.arange(len(self), device=pose.device))
        distance = (poses[:, :3, 3] - pose[:, None, :3, 3]).square().sum(2)
        if min_distance:
            distance = torch.where(distance < min_distance**2, torch.inf, distance)
        return distance.topk(min(count, len(self)), dim=1, largest=False).indices

    def view(self, index: Int[Tensor, " b"]) -> DepthViews:
        """Unpack views.

        Args:
            index: indices of the views.
        """
        packed = self.views.index_select(0, index).float()
        level = torch.floor(packed[:, 3] / 2)
        near, far = self.table_rows(index)[:, :2, None, None].unbind(1)
        return DepthViews(packed[:, :3] / 255, near + level / _DEPTH_LEVELS * (far - near), packed[:, 3] - 2 * level)

    def table_rows(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 18"]:
        """Return depth range (2) and pose (12) in units of the typical depth, and pinhole (4) over the longer side.

        Args:
            index: indices of the views.
        """
        return from_fixed(self.table.index_select(0, index))

    def pose(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 4 4"]:
        """Return camera-to-world poses in units of the typical depth.

        Args:
            index: indices of the views.
        """
        upper = self.table_rows(index)[:, 2:14].unflatten(1, (3, 4))
        lower = upper.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(upper.shape[0], 1, 4)
        return torch.cat([upper, lower], 1)

    def pinhole(self, index: Int[Tensor, " b"]) -> Float[Tensor, "b 4"]:
        """Return focal lengths and principal points (fx, fy, cx, cy) in pixels.

        Args:
            index: indices of the views.
        """
        return self.table_rows(index)[:, 14:] * max(self.views.shape[-2:])


def resample_rendering(output: RenderOutput, rows: Tensor, columns: Tensor) -> RenderOutput:
    """Resample renderings with a row matrix and a column matrix; depth is weighted by opacity.

    Args:
        output: renderings.
        rows: matrix that is multiplied from the left.
        columns: matrix that is multiplied from the right.
    """
    alpha = rows @ output.alpha @ columns
    depth = rows @ (output.alpha * output.depth) @ columns / alpha.clamp(min=1e-6)
    rgb = (rows @ output.rgb.movedim(-1, -3) @ columns).movedim(-3, -1)
    return RenderOutput(rgb, depth, alpha)


def pack_view(rgb: Tensor, depth: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Pack one view into bytes (4, H, W), and return its nearest and farthest depth.

    Opacities are rounded to a fixed grid before the silhouette is decided. So a pixel with an opacity of one half
    gets the same value on every processor.

    Args:
        rgb: color over white (H, W, 3).
        depth: along the optical axis (H, W), 0 where there is no surface.
        alpha: opacity (H, W).
    """
    opaque = ((alpha / _ALPHA_STEP).round() > _OPAQUE / _ALPHA_STEP) & (depth > 0)
    color = (rgb.permute(2, 0, 1).clamp(0, 1) * 255).round()
    if not bool(opaque.any()):
        return torch.cat([color, torch.zeros_like(depth)[None]]).to(torch.uint8), torch.ones(2)
    depth = _remove_mixed_depths(depth, opaque)
    # Expected depth on a silhouette may lie between object and background: leave the nearest thousandth out.
    surface = depth[opaque]
    limits = torch.stack([surface.kthvalue(1 + len(surface) // 1000).values, surface.kthvalue(len(surface)).values])
    indices = ndimage.distance_transform_edt(~opaque.numpy(), return_distances=False, return_indices=True)
    extended = depth[torch.from_numpy(np.asarray(indices[0])), torch.from_numpy(np.asarray(indices[1]))]
    fraction = (extended - limits[0]) / (limits[1] - limits[0]).clamp(min=1e-6)
    level = (fraction.clamp(0, 1) * _DEPTH_LEVELS).round()
    return torch.cat([color, (2 * level + opaque)[None]]).to(torch.uint8), limits


def _remove_mixed_depths(depth: Tensor, opaque: Tensor) -> Tensor:
    """Replace the depth of pixels between two surfaces, which is a mean of both, by the closest of the two depths.

    Points in mid-air would, from another side, cover what is visible between the surfaces.
    """
    nearest = -largest_around(torch.where(opaque, -depth, -torch.inf)[None], 3)[0]
    farthest = largest_around(torch.where(opaque, depth, -torch.inf)[None], 3)[0]
    surface = torch.where(depth - nearest < farthest - depth, nearest, farthest)
    mixed = opaque & (farthest - nearest > _DEPTH_EDGE * depth)
    return torch.where(mixed, surface, depth)
