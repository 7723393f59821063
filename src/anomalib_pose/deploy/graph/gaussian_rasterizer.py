# SPDX-License-Identifier: Apache-2.0
"""Gaussians drawn by a fixed number of tensor operations, for runtimes that know no rasterizer."""

import math

import torch
from jaxtyping import Bool, Float, Int
from kornia.geometry import quaternion_to_rotation_matrix
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.deploy.graph.fixed_point import from_fixed, to_fixed
from anomalib_pose.deploy.graph.gaussian_tiles import (
    COARSE,
    FAINT,
    FINE,
    MIDDLE,
    REACH,
    Splats,
    Tiles,
    blended,
    fullest_first,
    in_groups,
    joined,
    splats_of,
    split,
    together,
    whole_images,
)
from anomalib_pose.deploy.graph.resample import resized_intrinsics, window_matrix
from anomalib_pose.deploy.graph.tile_capacity import Filled, Room, filled, levels, room_for
from anomalib_pose.deploy.graph.view_synthesis import Synthesis
from anomalib_pose.geometry import Camera, rigid_inverse
from anomalib_pose.render import Gaussians, Rasterizer
from anomalib_pose.render.contributions import gaussian_contributions
from anomalib_pose.render.spherical_harmonics import sh_basis

_BLUR = 0.3
_NEAR = 1e-2
_UNSEEN = 0.001  # what covers less of what a view shows, all together, is not missed


def seen_gaussians(
    gaussians: Gaussians, rasterizer: Rasterizer, cameras: Camera, *, progress: bool = False
) -> Bool[Tensor, "c n"]:
    """Which Gaussians each camera's image consists of, but for a thousandth of it, by their weights in the blending.

    Args:
        gaussians: all of them.
        rasterizer: draws them.
        cameras: C cameras.
        progress: show a bar.
    """
    seen = []
    for index in track(range(len(cameras.camera_to_world)), "Finding what views see", disable=not progress):
        ascending = gaussian_contributions(gaussians, rasterizer, cameras[index]).sort()
        share = ascending.values.cumsum(0) / ascending.values.sum().clamp(min=1e-6)
        seen.append(torch.zeros_like(share, dtype=torch.bool).scatter(0, ascending.indices, share > _UNSEEN).cpu())
    return torch.stack(seen)


class GaussianDrawing(nn.Module):
    """Draws Gaussians as rasterizers do (Kerbl et al. 2023, section 6), without a branch that depends on the data.

    Those Gaussians that the nearest views see are drawn. Tiles of 32 pixels collect the ones that touch them and hand
    them down to tiles of 8, and these to tiles of 4, whose pixels blend them from front to back. Tiles that about as
    many touch are taken together: room for the fullest in all of them would take twice the time.

    Images that are smaller than those that the Gaussians were fitted to are drawn larger and resized as queries are.
    Gaussians that are widened instead, each for itself, let more of what is behind them shine through.

    Args:
        gaussians: what is drawn.
        unit: length in scene units that ``forward`` counts in.
        visible: which Gaussians each view sees (V, N).
        size: height and width of the images in pixels.
        room: for how many Gaussians.
        scale: pixels of the images for one of those that the Gaussians were fitted to.
        oversampling: pixels drawn along a side for one of the images, where these are smaller than those that the
            Gaussians were fitted to; no more than those have. 1 to widen the Gaussians.
    """

    centers: Tensor
    axes: Tensor
    log_opacities: Tensor
    sh: Tensor
    visible: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        gaussians: Gaussians,
        unit: float,
        visible: Bool[Tensor, "v n"],
        size: tuple[int, int],
        room: Room,
        scale: float = 1.0,
        oversampling: float = 1.0,
    ) -> None:
        super().__init__()
        factor = min(oversampling, 1 / scale)
        self.size = size
        self.drawn_size = _enlarged(size, factor) if factor > 1 else size
        self.scale = scale * self.drawn_size[1] / size[1]
        self.room = room
        for name, drawn, side in zip(("rows", "columns"), self.drawn_size, size, strict=True):
            self.register_buffer(name, window_matrix(drawn, side, 0.0, 1.0, torch.zeros(())))
        self.degree = gaussians.sh_degree or 0
        self.register_buffer("centers", to_fixed(gaussians.means / unit))
        rotations = quaternion_to_rotation_matrix(functional.normalize(gaussians.quats, dim=1))
        self.register_buffer("axes", rotations * gaussians.scales[:, None] / unit)
        self.register_buffer("log_opacities", gaussians.opacities.log())
        self.register_buffer("sh", gaussians.colors[:, : (self.degree + 1) ** 2].clone())
        self.register_buffer("visible", visible.to(torch.uint8))

    @classmethod
    def measured(
        cls,
        gaussians: Gaussians,
        unit: float,
        visible: Bool[Tensor, "v n"],
        size: tuple[int, int],
        cameras: tuple[Float[Tensor, "b 4 4"], Float[Tensor, "b 4"], Int[Tensor, "b s"]],
        neighborhoods: Int[Tensor, "v s"],
        scale: float = 1.0,
        oversampling: float = 1.0,
    ) -> "GaussianDrawing":
        """With the room that some cameras need.

        Args:
            gaussians: see the class.
            unit: see the class.
            visible: see the class.
            size: see the class.
            cameras: what ``forward`` takes.
            neighborhoods: indices of the views around each view: what some of them see together has room, for what is
                cut off is the object's far end.
            scale: see the class.
            oversampling: see the class.
        """
        drawing = cls(gaussians, unit, visible, size, Room(len(gaussians), (), (), (), 0), scale, oversampling)
        images = [drawing.filled(*(part[some : some + 1] for part in cameras)) for some in range(len(cameras[0]))]
        together = max(int(visible[some].any(0).sum()) for some in neighborhoods.cpu())
        drawing.room = room_for(images, together, len(gaussians))
        return drawing

    def filled(
        self, pose: Float[Tensor, "1 4 4"], intrinsics: Float[Tensor, "1 4"], near: Int[Tensor, "1 s"]
    ) -> Filled:
        """How many Gaussians the image of a camera takes; see ``forward``."""
        return filled(self._project(pose, intrinsics, near), self.drawn_size)

    def forward(
        self, pose: Float[Tensor, "b 4 4"], intrinsics: Float[Tensor, "b 4"], near: Int[Tensor, "b s"]
    ) -> Synthesis:
        """What cameras see; depth is the expected one, and 0 where nothing is.

        Args:
            pose: camera-to-world, in multiples of ``unit``.
            intrinsics: (fx, fy, cx, cy) in pixels.
            near: indices of views close to each camera: what one of them sees is drawn.
        """
        splats = self._project(pose, intrinsics, near)
        height, width = self.drawn_size
        image = self._drawn(splats)[:, :height, :width].permute(0, 3, 1, 2)
        if self.drawn_size != self.size:
            image = self.rows @ image @ self.columns.transpose(0, 1)
        alpha = image[:, 3]
        depth = torch.where(alpha > FAINT[1], image[:, 4] / alpha.clamp(min=FAINT[0]), 0.0)
        return Synthesis(image[:, :3] + (1 - image[:, 3:4]), alpha, torch.ones_like(alpha), depth)

    def _drawn(self, splats: Splats) -> Float[Tensor, "b s s 5"]:
        """Square images of weights times RGB, 1 and depth."""
        room, nobody = self.room, splats.nobody
        (whole, _), (pieces, _), (parts, _) = levels(self.drawn_size)
        tiles = split(splats, whole_images(splats, room.image), whole, COARSE, room.coarse[0])
        groups = in_groups(fullest_first(tiles, whole**2, whole**2, nobody), whole**2, room.coarse)
        groups = [split(splats, group, pieces, MIDDLE, room.middle[0]) for group in groups]
        tiles = Tiles(*(together(list(part), whole**2, pieces**2) for part in zip(*groups, strict=True)))
        side = whole * pieces
        tiles = fullest_first(tiles, side**2, room.tiles, nobody)
        groups = in_groups(tiles, room.tiles, room.middle)
        shown = [
            joined(blended(splats, split(splats, group, parts, FINE, most, exact=True)), parts)
            for group, most in zip(groups, room.fine, strict=True)
        ]
        return joined(_placed(together(shown, room.tiles), tiles, side, room.tiles), side)

    def _project(self, pose: Tensor, intrinsics: Tensor, near: Tensor) -> Splats:
        """Gaussians on the image plane (Zwicker et al. 2002), those that nearby views see, the nearest first."""
        view = rigid_inverse(pose)
        centers = from_fixed(self.centers)
        x, y, z = (view[:, :3, :3] @ centers.T + view[:, :3, 3:]).unbind(1)
        axes = (view[:, :3, :3] @ self.axes.permute(1, 0, 2).flatten(1)).unflatten(2, (-1, 3))
        inverse = 1 / z.clamp(min=_NEAR)
        fx, fy, cx, cy = resized_intrinsics(intrinsics, self.size, self.drawn_size).T[:, :, None].unbind(0)
        x, y = x * inverse, y * inverse
        along_u = (fx * inverse)[..., None] * (axes[:, 0] - x[..., None] * axes[:, 2])
        along_v = (fy * inverse)[..., None] * (axes[:, 1] - y[..., None] * axes[:, 2])
        fitted, spread = _BLUR * self.scale**2, self._spread
        xx, yy = along_u.square().sum(2) + fitted, along_v.square().sum(2) + fitted
        xy = (along_u * along_v).sum(2)
        before = xx * yy - xy.square()
        xx, yy = xx + spread, yy + spread
        opacities = self.log_opacities + 0.5 * torch.log(before / (xx * yy - xy.square()))
        reach = 2 * (opacities + REACH).clamp(min=0)
        seen = self.visible.index_select(0, near.flatten()).unflatten(0, (-1, near.shape[1])).amax(1) > 0
        seen = seen & (z > _NEAR) & (reach > 0)
        first = torch.where(seen, inverse, 0.0).topk(self.room.image, dim=1)
        rest = [xx, xy, yy, opacities, (reach * xx).sqrt(), (reach * yy).sqrt(), z]
        numbers = torch.cat([torch.stack([fx * x + cx, fy * y + cy, *rest], 2), self._colors(pose, centers)], 2)
        offset = torch.arange(z.shape[0], device=z.device)[:, None] * z.shape[1]
        numbers = numbers.flatten(0, 1).index_select(0, (first.indices + offset).flatten())
        return splats_of(numbers, first.values.flatten() > 0)

    @property
    def _spread(self) -> float:
        """Variance in px² of the filter that brings photographs to the images' size, where drawings are not resized."""
        return 0.0 if self.drawn_size != self.size else max(1.0, self.scale**2) / 6

    def _colors(self, pose: Tensor, centers: Tensor) -> Float[Tensor, "b n 3"]:
        """RGB as seen from each camera."""
        directions = functional.normalize(centers - pose[:, None, :3, 3], dim=2)
        basis = sh_basis(self.degree, directions)
        return (0.5 + (basis[..., None] * self.sh).sum(2)).clamp(min=0)


def _enlarged(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """At least so many times a size, in whole tiles."""
    height, width = (MIDDLE * math.ceil(factor * side / MIDDLE) for side in size)
    return height, width


def _placed(shown: Float[Tensor, "t s s c"], tiles: Tiles, side: int, count: int) -> Float[Tensor, "bt s s c"]:
    """All tiles of images of so many along a side, row by row, empty where none is shown."""
    row, column = ((part / MIDDLE).round().long() for part in (tiles.top, tiles.left))
    place = (row * side + column).unflatten(0, (-1, count))
    number = torch.arange(1, shown.shape[0] + 1, device=shown.device).unflatten(0, (-1, count))
    chosen = torch.zeros_like(place[:, :1]).expand(-1, side**2).scatter(1, place, number).flatten()
    return torch.cat([torch.zeros_like(shown[:1]), shown]).index_select(0, chosen)
