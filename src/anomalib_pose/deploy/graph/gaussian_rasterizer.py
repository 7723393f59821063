# SPDX-License-Identifier: Apache-2.0
"""Rasterizer of Gaussians as a fixed number of tensor operations, for runtimes without a rasterizer.

Twin: ``anomalib_pose.render.cpu.CpuRasterizer``, whose image at the size of the photographs is resized as queries are.
On the object, the mean absolute difference in color and in opacity is below 8e-3 without oversampling, 4e-3 with the
default of 1.25, and 1e-3 with 2. The mean difference in depth is below 5e-3 scene units.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from kornia.geometry import quaternion_to_rotation_matrix
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
    blend,
    image_tiles,
    make_splats,
    merge_groups,
    merge_tiles,
    sort_by_occupancy,
    split_into_groups,
    split_tiles,
)
from anomalib_pose.deploy.graph.resample import resize_pinhole, window_matrix
from anomalib_pose.deploy.graph.tile_capacity import (
    TileCapacity,
    TileOccupancy,
    capacity_for,
    measure_occupancy,
    tile_levels,
)
from anomalib_pose.deploy.graph.view_synthesis import GraphRendering
from anomalib_pose.geometry import Camera, rigid_inverse
from anomalib_pose.progress import track
from anomalib_pose.render import Gaussians, Rasterizer
from anomalib_pose.render.contributions import gaussian_contributions
from anomalib_pose.render.spherical_harmonics import sh_basis

_BLUR = 0.3
_NEAR = 1e-2
_INVISIBLE = 0.001  # Gaussians that together contribute less than this fraction of an image are left out


def find_visible_gaussians(
    gaussians: Gaussians, rasterizer: Rasterizer, cameras: Camera, *, progress: bool = False
) -> Bool[Tensor, "c n"]:
    """Find the Gaussians that each camera sees: those whose blending weights sum up to 99.9 % of its image.

    Args:
        gaussians: all Gaussians of the scene.
        rasterizer: rasterizer that gives the weights.
        cameras: C cameras.
        progress: show a progress bar.
    """
    visible = []
    for index in track(range(len(cameras.camera_to_world)), "Find visible Gaussians", shown=progress):
        ascending = gaussian_contributions(gaussians, rasterizer, cameras[index]).sort()
        cumulative = ascending.values.cumsum(0) / ascending.values.sum().clamp(min=1e-6)
        mask = torch.zeros_like(cumulative, dtype=torch.bool)
        visible.append(mask.scatter(0, ascending.indices, cumulative > _INVISIBLE).cpu())
    return torch.stack(visible)


class GaussianRasterizerGraph(nn.Module):
    """Rasterizes Gaussians (Kerbl et al. 2023, section 6) without a branch that depends on the data.

    The Gaussians that the nearest views see are rasterized. Tiles of 32 pixels collect the Gaussians that overlap
    them. They are split into tiles of 8 pixels, and these into tiles of 4 pixels, each with the Gaussians that overlap
    it. The pixels of the finest tiles blend their Gaussians from front to back.

    Tiles with a similar number of Gaussians form a group: the capacity of the fullest tile in all of them would take
    twice the time.

    Images that are smaller than the photographs are rasterized larger and resized as queries are. Widening each
    Gaussian instead would let more of the background shine through.

    Args:
        gaussians: the Gaussians.
        unit: length of the unit of ``forward`` in scene units.
        visible: mask of the Gaussians that each view sees (V, N).
        size: height and width of the images in pixels.
        capacity: maximum number of Gaussians in each part of an image.
        scale: pixels of the images along a side for one pixel of the photographs that the Gaussians were fitted to.
        oversampling: rasterized pixels along a side for one pixel of the images, where these are smaller than the
            photographs; never more pixels than the photographs have. 1 to widen the Gaussians instead.
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
        capacity: TileCapacity,
        scale: float = 1.0,
        oversampling: float = 1.0,
    ) -> None:
        super().__init__()
        factor = min(oversampling, 1 / scale)
        self.size = size
        self.raster_size = _enlarged(size, factor) if factor > 1 else size
        self.scale = scale * self.raster_size[1] / size[1]
        self.capacity = capacity
        for name, raster_side, side in zip(("rows", "columns"), self.raster_size, size, strict=True):
            self.register_buffer(name, window_matrix(raster_side, side, 0.0, 1.0, torch.zeros(())))
        self.degree = gaussians.sh_degree or 0
        self.register_buffer("centers", to_fixed(gaussians.means / unit))
        rotations = quaternion_to_rotation_matrix(functional.normalize(gaussians.quats, dim=1))
        self.register_buffer("axes", rotations * gaussians.scales[:, None] / unit)
        self.register_buffer("log_opacities", gaussians.opacities.log())
        self.register_buffer("sh", gaussians.colors[:, : (self.degree + 1) ** 2].clone())
        self.register_buffer("visible", visible.to(torch.uint8))

    @classmethod
    def with_measured_capacity(
        cls,
        gaussians: Gaussians,
        unit: float,
        visible: Bool[Tensor, "v n"],
        size: tuple[int, int],
        cameras: tuple[Float[Tensor, "b 4 4"], Float[Tensor, "b 4"], Int[Tensor, "b s"]],
        neighborhoods: Int[Tensor, "v s"],
        scale: float = 1.0,
        oversampling: float = 1.0,
    ) -> "GaussianRasterizerGraph":
        """Build a rasterizer whose capacity is enough for given cameras.

        Args:
            gaussians: see the class.
            unit: see the class.
            visible: see the class.
            size: see the class.
            cameras: arguments of ``forward``.
            neighborhoods: indices of the views around each view. The image's capacity covers all Gaussians that
                these views see together, because a lower capacity would cut off the far end of the object.
            scale: see the class.
            oversampling: see the class.
        """
        no_capacity = TileCapacity(len(gaussians), (), (), (), 0)
        rasterizer = cls(gaussians, unit, visible, size, no_capacity, scale, oversampling)
        images = [rasterizer.occupancy(*(part[i : i + 1] for part in cameras)) for i in range(len(cameras[0]))]
        union = max(int(visible[views].any(0).sum()) for views in neighborhoods.cpu())
        rasterizer.capacity = capacity_for(images, union, len(gaussians))
        return rasterizer

    def occupancy(
        self, pose: Float[Tensor, "1 4 4"], pinhole: Float[Tensor, "1 4"], near: Int[Tensor, "1 s"]
    ) -> TileOccupancy:
        """Count the Gaussians in the tiles of one camera's image.

        Args:
            pose: see ``forward``.
            pinhole: see ``forward``.
            near: see ``forward``.
        """
        return measure_occupancy(self._project(pose, pinhole, near), self.raster_size)

    def forward(
        self, pose: Float[Tensor, "b 4 4"], pinhole: Float[Tensor, "b 4"], near: Int[Tensor, "b s"]
    ) -> GraphRendering:
        """Rasterize images; their depth is the expected depth, and 0 where there is no Gaussian.

        Args:
            pose: camera-to-world, in multiples of ``unit``.
            pinhole: (fx, fy, cx, cy) in pixels.
            near: indices of views close to each camera; the Gaussians that one of them sees are rasterized.
        """
        splats = self._project(pose, pinhole, near)
        height, width = self.raster_size
        image = self._rasterize(splats)[:, :height, :width].permute(0, 3, 1, 2)
        if self.raster_size != self.size:
            image = self.rows @ image @ self.columns.transpose(0, 1)
        alpha = image[:, 3]
        depth = torch.where(alpha > FAINT[1], image[:, 4] / alpha.clamp(min=FAINT[0]), 0.0)
        return GraphRendering(image[:, :3] + (1 - image[:, 3:4]), alpha, torch.ones_like(alpha), depth)

    def _rasterize(self, splats: Splats) -> Float[Tensor, "b s s 5"]:
        """Return square images of weights times RGB, 1 and depth."""
        capacity, padding_index = self.capacity, splats.padding_index
        (across, _), (pieces, _), (parts, _) = tile_levels(self.raster_size)
        tiles = split_tiles(splats, image_tiles(splats, capacity.image), across, COARSE, capacity.coarse[0])
        tiles = sort_by_occupancy(tiles, across**2, across**2, padding_index)
        groups = split_into_groups(tiles, across**2, capacity.coarse)
        groups = [split_tiles(splats, group, pieces, MIDDLE, capacity.middle[0]) for group in groups]
        tiles = Tiles(*(merge_groups(list(part), across**2, pieces**2) for part in zip(*groups, strict=True)))
        side = across * pieces
        tiles = sort_by_occupancy(tiles, side**2, capacity.tiles, padding_index)
        groups = split_into_groups(tiles, capacity.tiles, capacity.middle)
        images = [
            merge_tiles(blend(splats, split_tiles(splats, group, parts, FINE, count, exact=True)), parts)
            for group, count in zip(groups, capacity.fine, strict=True)
        ]
        return merge_tiles(_place_tiles(merge_groups(images, capacity.tiles), tiles, side, capacity.tiles), side)

    def _project(self, pose: Tensor, pinhole: Tensor, near: Tensor) -> Splats:
        """Project the Gaussians that nearby views see onto the image (Zwicker et al. 2002), the nearest first."""
        view = rigid_inverse(pose)
        centers = from_fixed(self.centers)
        x, y, z = (view[:, :3, :3] @ centers.T + view[:, :3, 3:]).unbind(1)
        axes = (view[:, :3, :3] @ self.axes.permute(1, 0, 2).flatten(1)).unflatten(2, (-1, 3))
        inverse = 1 / z.clamp(min=_NEAR)
        fx, fy, cx, cy = resize_pinhole(pinhole, self.size, self.raster_size).T[:, :, None].unbind(0)
        x, y = x * inverse, y * inverse
        along_u = (fx * inverse)[..., None] * (axes[:, 0] - x[..., None] * axes[:, 2])
        along_v = (fy * inverse)[..., None] * (axes[:, 1] - y[..., None] * axes[:, 2])
        blur, resize_variance = _BLUR * self.scale**2, self._resize_variance
        xx, yy = along_u.square().sum(2) + blur, along_v.square().sum(2) + blur
        xy = (along_u * along_v).sum(2)
        determinant = xx * yy - xy.square()
        xx, yy = xx + resize_variance, yy + resize_variance
        opacities = self.log_opacities + 0.5 * torch.log(determinant / (xx * yy - xy.square()))
        reach = 2 * (opacities + REACH).clamp(min=0)
        visible = self.visible.index_select(0, near.flatten()).unflatten(0, (-1, near.shape[1])).amax(1) > 0
        visible = visible & (z > _NEAR) & (reach > 0)
        front = torch.where(visible, inverse, 0.0).topk(self.capacity.image, dim=1)
        rest = [xx, xy, yy, opacities, (reach * xx).sqrt(), (reach * yy).sqrt(), z]
        numbers = torch.cat([torch.stack([fx * x + cx, fy * y + cy, *rest], 2), self._colors(pose, centers)], 2)
        offset = torch.arange(z.shape[0], device=z.device)[:, None] * z.shape[1]
        numbers = numbers.flatten(0, 1).index_select(0, (front.indices + offset).flatten())
        return make_splats(numbers, front.values.flatten() > 0)

    @property
    def _resize_variance(self) -> float:
        """Variance in px² of the filter that resizes photographs to the images' size; 0 where images are resized."""
        return 0.0 if self.raster_size != self.size else max(1.0, self.scale**2) / 6

    def _colors(self, pose: Tensor, centers: Tensor) -> Float[Tensor, "b n 3"]:
        """Evaluate the RGB of each Gaussian from the direction of each camera."""
        directions = functional.normalize(centers - pose[:, None, :3, 3], dim=2)
        basis = sh_basis(self.degree, directions)
        return (0.5 + (basis[..., None] * self.sh).sum(2)).clamp(min=0)


def _enlarged(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Return at least ``factor`` times a size, in whole tiles."""
    height, width = (MIDDLE * math.ceil(factor * side / MIDDLE) for side in size)
    return height, width


def _place_tiles(images: Float[Tensor, "t s s c"], tiles: Tiles, side: int, count: int) -> Float[Tensor, "bt s s c"]:
    """Put the images of tiles at their positions in a full grid, row by row; positions without a tile are empty.

    Args:
        images: pixels of the tiles.
        tiles: positions of the tiles.
        side: tiles along a side of the grid.
        count: tiles of each image.
    """
    row, column = ((part / MIDDLE).round().long() for part in (tiles.top, tiles.left))
    position = (row * side + column).unflatten(0, (-1, count))
    number = torch.arange(1, images.shape[0] + 1, device=images.device).unflatten(0, (-1, count))
    source = torch.zeros_like(position[:, :1]).expand(-1, side**2).scatter(1, position, number).flatten()
    return torch.cat([torch.zeros_like(images[:1]), images]).index_select(0, source)
