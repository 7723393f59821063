# SPDX-License-Identifier: Apache-2.0
"""Gaussians drawn by a fixed number of tensor operations, for runtimes that know no rasteriser."""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from kornia.geometry import quaternion_to_rotation_matrix
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.deploy.fixed_point import from_fixed, to_fixed
from anomalib_pose.deploy.gaussian_tiles import (
    COARSE,
    FAINT,
    FINE,
    MIDDLE,
    REACH,
    Splats,
    Tiles,
    blended,
    blending,
    joined,
    occupied_tiles,
    splats_of,
    split,
    touching,
    whole_images,
)
from anomalib_pose.deploy.resample import resized_intrinsics, window_matrix
from anomalib_pose.deploy.view_synthesis import Synthesis
from anomalib_pose.geometry import Camera, rigid_inverse
from anomalib_pose.render import Gaussians, Rasterizer
from anomalib_pose.render.spherical_harmonics import sh_basis

_BLUR = 0.3
_NEAR = 1e-2
_MOST = 0.96  # of the finest tiles are drawn in full; 0.995 takes 1.7 times the time in PyTorch for 2 % less error
_OPAQUE = math.log(0.01)  # what lies behind this is not missed
_UNSEEN = 0.001  # what covers less of what a view shows, all together, is not missed
_STEP = 16
_SLACK = 1.1  # a camera that is closer than those that were measured shows the object in more tiles


def seen_gaussians(
    gaussians: Gaussians, rasterizer: Rasterizer, cameras: Camera, *, progress: bool = False
) -> Bool[Tensor, "c n"]:
    """Which Gaussians each camera's image consists of, but for a thousandth of it, by their weights in the blending.

    The weight of a Gaussian in an image is the derivative of the image's sum by its colour.

    Args:
        gaussians: all of them.
        rasterizer: draws them.
        cameras: C cameras.
        progress: show a bar.
    """
    seen = []
    for index in track(range(len(cameras.camera_to_world)), "Finding what views see", disable=not progress):
        colours = torch.zeros_like(gaussians.means, requires_grad=True)
        with torch.inference_mode(mode=False), torch.enable_grad():
            drawn = rasterizer(replace(gaussians, colors=colours, sh_degree=None), cameras[index])
            (weights,) = torch.autograd.grad(drawn.rgb[..., 0].sum(), colours)
        ascending = weights[:, 0].sort()
        share = ascending.values.cumsum(0) / ascending.values.sum().clamp(min=1e-6)
        seen.append(torch.zeros_like(share, dtype=torch.bool).scatter(0, ascending.indices, share > _UNSEEN).cpu())
    return torch.stack(seen)


class Room(NamedTuple):
    """How many Gaussians parts of an image have room for. Of more, those farthest away are not drawn.

    Args:
        image: of the whole image.
        coarse: of a tile of 32 pixels.
        middle: of a tile of 8 pixels.
        fine: of a tile of 4 pixels.
        tiles: tiles of 8 pixels that show the object; of more, those farthest down are not drawn.
    """

    image: int
    coarse: int
    middle: int
    fine: int
    tiles: int


class GaussianDrawing(nn.Module):
    """Draws Gaussians as rasterisers do (Kerbl et al. 2023, section 6), without a branch that depends on the data.

    Those Gaussians that the nearest views see are drawn. Tiles of 32 pixels collect the ones that touch them and hand
    them down to tiles of 8, and these to tiles of 4, whose pixels blend them from front to back.

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

    centres: Tensor
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
        self.register_buffer("centres", to_fixed(gaussians.means / unit))
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
            scale: see the class.
            oversampling: see the class.
        """
        drawing = cls(gaussians, unit, visible, size, Room(len(gaussians), 0, 0, 0, 0), scale, oversampling)
        needed = [drawing.needs(*(part[some : some + 1] for part in cameras)) for some in range(len(cameras[0]))]
        most = Room(*(_STEP * math.ceil(max(part) / _STEP) for part in zip(*needed, strict=True)))
        image, coarse, middle, fine = (min(room, len(gaussians)) for room in most[:4])
        drawing.room = Room(image, coarse, middle, fine, math.ceil(_SLACK * most.tiles))
        return drawing

    def needs(self, pose: Float[Tensor, "1 4 4"], intrinsics: Float[Tensor, "1 4"], near: Int[Tensor, "1 s"]) -> Room:
        """The room that a camera takes: all Gaussians of larger tiles, of the finest what most of them need."""
        splats = self._project(pose, intrinsics, near)
        coarse, middle = (self._touched(splats, side) for side in (COARSE, MIDDLE))
        image = (splats.bounds[0] < splats.bounds[1]).sum()
        needed = Room(int(image), _enough(coarse, 1.0), _enough(middle, 1.0), 0, int((middle > 0).sum()))
        tiles = whole_images(splats, self.room.image)
        for (pieces, side), room in zip(self._levels[:2], needed[1:3], strict=True):
            tiles = split(splats, tiles, pieces, side, room)
        shown = tiles.members[:, 0] < splats.nobody
        tiles = Tiles(*(part[shown] for part in tiles))
        fine = [
            _count_until_opaque(splats, split(splats, Tiles(*some), *self._levels[2], needed.middle, exact=True))
            for some in zip(*(part.split(16) for part in tiles), strict=True)
        ]
        return needed._replace(fine=_enough(torch.cat(fine) if fine else coarse, _MOST))

    def _touched(self, splats: Splats, side: int) -> Int[Tensor, "t"]:
        """How many Gaussians touch each tile of an image."""
        pieces = self._levels[0][0] * COARSE // side
        inside, _ = touching(splats, whole_images(splats, self.room.image), pieces, side)
        return inside.sum(2).flatten()

    @property
    def _levels(self) -> tuple[tuple[int, int], ...]:
        """Pieces along a side that tiles are split into, and their sides, from the whole image to the finest."""
        whole = math.ceil(max(self.drawn_size) / COARSE)
        return (whole, COARSE), (COARSE // MIDDLE, MIDDLE), (MIDDLE // FINE, FINE)

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
        (whole, _), (pieces, _), (parts, _) = self._levels
        tiles = split(splats, whole_images(splats, self.room.image), whole, COARSE, self.room.coarse)
        tiles = split(splats, tiles, pieces, MIDDLE, self.room.middle)
        tiles, place = occupied_tiles(tiles, (whole * pieces) ** 2, self.room.tiles, splats.nobody)
        pixels = blended(splats, split(splats, tiles, parts, FINE, self.room.fine, exact=True))
        shown = joined(pixels, parts)
        shown = torch.cat([shown, torch.zeros_like(shown[:1])]).index_select(0, place)
        height, width = self.drawn_size
        image = joined(joined(shown, pieces), whole)[:, :height, :width].permute(0, 3, 1, 2)
        if self.drawn_size != self.size:
            image = self.rows @ image @ self.columns.transpose(0, 1)
        alpha = image[:, 3]
        depth = torch.where(alpha > FAINT[1], image[:, 4] / alpha.clamp(min=FAINT[0]), 0.0)
        return Synthesis(image[:, :3] + (1 - image[:, 3:4]), alpha, torch.ones_like(alpha), depth)

    def _project(self, pose: Tensor, intrinsics: Tensor, near: Tensor) -> Splats:
        """Gaussians on the image plane (Zwicker et al. 2002), those that nearby views see, the nearest first."""
        view = rigid_inverse(pose)
        centres = from_fixed(self.centres)
        x, y, z = (view[:, :3, :3] @ centres.T + view[:, :3, 3:]).unbind(1)
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
        numbers = torch.cat([torch.stack([fx * x + cx, fy * y + cy, *rest], 2), self._colours(pose, centres)], 2)
        offset = torch.arange(z.shape[0], device=z.device)[:, None] * z.shape[1]
        numbers = numbers.flatten(0, 1).index_select(0, (first.indices + offset).flatten())
        return splats_of(numbers, first.values.flatten() > 0)

    @property
    def _spread(self) -> float:
        """Variance in px² of the filter that brings photographs to the images' size, where drawings are not resized."""
        return 0.0 if self.drawn_size != self.size else max(1.0, self.scale**2) / 6

    def _colours(self, pose: Tensor, centres: Tensor) -> Float[Tensor, "b n 3"]:
        """RGB as seen from each camera."""
        directions = functional.normalize(centres - pose[:, None, :3, 3], dim=2)
        basis = sh_basis(self.degree, directions)
        return (0.5 + (basis[..., None] * self.sh).sum(2)).clamp(min=0)


def _enlarged(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """At least so many times a size, in whole tiles."""
    height, width = (MIDDLE * math.ceil(factor * side / MIDDLE) for side in size)
    return height, width


def _enough(counts: Int[Tensor, "t"], share: float) -> int:
    """Room that is enough for a share of those tiles that hold anything."""
    counts = counts[counts > 0].double()
    return math.ceil(counts.quantile(share)) if len(counts) else 1


def _count_until_opaque(splats: Splats, tiles: Tiles) -> Int[Tensor, "t"]:
    """How many Gaussians, from the front, the pixels of each of the finest tiles show."""
    passed = blending(splats, tiles)[1]
    ahead = torch.cat([torch.zeros_like(passed[:, :, :1]), passed[:, :, :-1]], 2)
    present = (tiles.members < splats.nobody)[:, None]
    return ((ahead > _OPAQUE) & present).any(1).sum(1)
