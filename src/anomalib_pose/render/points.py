# SPDX-License-Identifier: Apache-2.0
"""Renderer of point clouds from several views, with the pixel and visibility of each point (PointAD, section 3.1).

Each view rotates the cloud about its mean. The camera of a view fits the bounding box of the rotated cloud. The frame
of the views has +x right, +y up, +z towards the viewer. ``to_view_frame`` converts the points of a depth camera.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anomalib_pose.geometry import so3_exp
from anomalib_pose.render.compiled import announced_compilation, for_ranges
from anomalib_pose.render.point_kernels import average_samples, find_nearest, rasterize_squares

VIEW_ANGLES: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    5: ((-45.0, 0.0, 45.0), (-30.0, 30.0)),
    9: ((-45.0, -15.0, 0.0, 15.0, 45.0), (-30.0, -15.0, 15.0, 30.0)),
    11: ((-45.0, -15.0, 0.0, 15.0, 45.0), (-45.0, -30.0, -15.0, 15.0, 30.0, 45.0)),
}
"""Rotation angles in degrees about x and about y, by number of views; the paper gives angles for nine views only."""

# The paper's window in pixels, and the camera's field of view of 60 degrees. Half of the field of view covers 0.7 of
# the box's largest side.
WINDOW = 1024
_HALF_TANGENT = math.tan(math.pi / 6)
_FOCAL = WINDOW / 2 / _HALF_TANGENT
_ZOOM = 0.7
# Width of squares in spacings of points: it leaves no holes and reproduces the sizes that the paper chose by hand.
_SQUARE_IN_SPACINGS = 2.75
_SMALLEST_SQUARE = 3.0
_ALBEDO, _DIFFUSE, _SPECULAR, _SHININESS = 0.7, 1.32, 0.4, 100
_LIGHT_DISTANCE = 2.0
_BACKGROUND = 1.0


@dataclass(frozen=True)
class PointViews:
    """Images of V views, and the pixel and visibility of N points in each view.

    Args:
        images: shaded points on white, gray in [0, 1].
        point_indices: index of the point at each sample, -1 for the background; a pixel has the number of samples per
            axis that ``render_views`` was called with.
        pixels: row and column of each point's pixel.
        visible: whether a point is visible at its pixel.
    """

    images: Float[Tensor, "v s s"]
    point_indices: Int[Tensor, "v r r"]
    pixels: Int[Tensor, "v n 2"]
    visible: Bool[Tensor, "v n"]

    def masks(self, labels: Bool[Tensor, " n"]) -> Bool[Tensor, "v s s"]:
        """Mark the pixels with more than half of their samples on labeled points.

        Args:
            labels: whether a point has the label.
        """
        values = labels.float().expand(len(self.point_indices), -1)
        return _average_samples(self.point_indices, values, 0.0, self.images.shape[-1]) > 0.5


def to_view_frame(points: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """Convert points or normals from a depth camera's frame (+y down, +z forward) to the views': 180° about x."""
    return points * points.new_tensor([1.0, -1.0, -1.0])


def view_rotations(about_x: Sequence[float], about_y: Sequence[float]) -> Float[Tensor, "v 3 3"]:
    """Build rotation matrices of views, first those about x, then those about y.

    Args:
        about_x: angles in degrees.
        about_y: angles in degrees.

    Raises:
        ValueError: if there is no angle.
    """
    if not len(about_x) + len(about_y):
        msg = "Views need at least one angle about x or y, got none."
        raise ValueError(msg)
    rotation_vectors = [[angle, 0.0, 0.0] for angle in about_x] + [[0.0, angle, 0.0] for angle in about_y]
    return so3_exp(torch.deg2rad(torch.tensor(rotation_vectors, dtype=torch.float64)))


def render_views(
    points: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"],
    rotations: Float[Tensor, "v 3 3"],
    *,
    spacing: float,
    size: int = 336,
    point_size: float | None = None,
    samples: int = 2,
    depth_tolerance: float | None = None,
) -> PointViews:
    """Render a cloud in V views, with the pixel and visibility of each point (PointAD, section 3.1).

    Args:
        points: positions; see the module for the frame.
        normals: unit normals; their sign does not matter.
        rotations: rotations of the cloud about its mean.
        spacing: distance between neighboring points, in units of the points; sets the size of the squares.
        size: width and height of the views, pixels.
        point_size: side of a point's square in pixels of a window of 1024; None for a size that leaves no holes.
        samples: samples per pixel along each axis.
        depth_tolerance: points up to this distance behind the nearest point of their pixel are visible too, in units
            of the points; None for the paper's rule, where only the nearest point is visible.

    Raises:
        ValueError: if there are no points, all points lie in one place, or a number is out of range.
    """
    _check_arguments(points, size, samples, point_size, depth_tolerance)
    rotated = _rotate(points.double(), rotations.double())
    cameras = _fit_cameras(rotated)
    xy, nearness = _project(rotated, cameras)
    pixels, visible = _pixels_and_visibility(xy, nearness, size, depth_tolerance)
    if point_size is None:
        point_size = max(_SQUARE_IN_SPACINGS * spacing * _FOCAL / cameras.distance.min().item(), _SMALLEST_SQUARE)
    resolution = size * samples
    point_indices = _rasterize(xy, nearness, point_size, resolution)
    gray = _shade(rotated, normals.double() @ rotations.double().transpose(1, 2), cameras)
    images = _average_samples(point_indices, gray, _BACKGROUND, size)
    return PointViews(images, point_indices, pixels, visible)


@dataclass(frozen=True)
class _Cameras:
    """Cameras of V views: center and largest side of each rotated cloud's box, and distance from the center."""

    center: Float[Tensor, "v 1 3"]
    side: Float[Tensor, "v 1"]
    distance: Float[Tensor, "v 1"]


def _check_arguments(
    points: Tensor, size: int, samples: int, point_size: float | None, tolerance: float | None
) -> None:
    if size < 1 or samples < 1:
        msg = f"size and samples should be 1 or more, got {size} and {samples}."
        raise ValueError(msg)
    if point_size is not None and not point_size > 0:
        msg = f"point_size should be above 0 pixels, got {point_size}."
        raise ValueError(msg)
    if tolerance is not None and tolerance < 0:
        msg = f"depth_tolerance should be 0 or more, got {tolerance}."
        raise ValueError(msg)
    if not len(points) or not bool(torch.isfinite(points).all()) or bool((points == points[0]).all()):
        msg = f"A cloud needs finite points at different places, got {len(points)}: remove NaN and empty cells first."
        raise ValueError(msg)


def _rotate(points: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the cloud (n, 3) about its mean to (v, n, 3)."""
    mean = points.mean(0)
    return (points - mean) @ rotations.transpose(1, 2) + mean


def _fit_cameras(rotated: Tensor) -> _Cameras:
    low, high = rotated.amin(1, keepdim=True), rotated.amax(1, keepdim=True)
    side = (high - low).amax(-1)
    return _Cameras((low + high) / 2, side, _ZOOM * side / _HALF_TANGENT)


def _project(rotated: Tensor, cameras: _Cameras) -> tuple[Tensor, Tensor]:
    """Return positions (v, n, 2) in pixels of the window from its center, y down, and nearness (v, n)."""
    offset = rotated - cameras.center
    scale = _FOCAL / (cameras.distance - offset[..., 2])
    return torch.stack([offset[..., 0] * scale, -offset[..., 1] * scale], -1), rotated[..., 2].contiguous()


def _pixels_and_visibility(xy: Tensor, nearness: Tensor, size: int, tolerance: float | None) -> tuple[Tensor, Tensor]:
    """Return row and column (v, n, 2), and visibility (v, n): nearest point of a pixel, or points close behind it."""
    # In the published correspondences the window's center is the center of a pixel: a shift by half a pixel.
    position = ((xy + (WINDOW - 1) / 2) * (size / WINDOW)).trunc().clamp(0, size - 1)
    column, row = position.to(torch.int32).unbind(-1)
    cells = (row * size + column).numpy()
    depth = nearness.numpy()
    visible = np.zeros(cells.shape, bool)

    def work(start: int, stop: int) -> None:
        for view in range(start, stop):
            best, owner = np.full(size * size, -np.inf), np.full(size * size, -1, np.int32)
            find_nearest(cells[view], depth[view], best, owner)
            if tolerance is None:
                visible[view, owner[owner >= 0]] = True
            else:
                visible[view] = depth[view] >= best[cells[view]] - tolerance

    with announced_compilation("the point renderer"):
        for_ranges(work, len(cells))
    return torch.stack([row, column], -1), torch.from_numpy(visible)


def _rasterize(xy: Tensor, nearness: Tensor, point_size: float, resolution: int) -> Tensor:
    """Return the index of the point at each sample (v, r, r), -1 for none."""
    scale = resolution / WINDOW
    position = ((xy + WINDOW / 2) * scale).permute(2, 0, 1).contiguous().numpy()
    depth = nearness.numpy()
    point_indices = np.full((len(depth), resolution, resolution), -1, np.int32)

    def work(start: int, stop: int) -> None:
        for view in range(start, stop):
            best = np.full((resolution, resolution), -np.inf)
            rasterize_squares(
                position[0, view], position[1, view], depth[view], point_size * scale / 2, best, point_indices[view]
            )

    with announced_compilation("the point renderer"):
        for_ranges(work, len(depth))
    return torch.from_numpy(point_indices)


def _shade(rotated: Tensor, normals: Tensor, cameras: _Cameras) -> Tensor:
    """Return the gray value (v, n) of points lit from the front (Blinn-Phong); both sides of a surface reflect."""
    offset, normals = (rotated - cameras.center).float(), normals.float()

    def direction_to(distance: Tensor) -> Tensor:
        source = torch.nn.functional.pad(distance.float()[..., None], (2, 0))
        return torch.nn.functional.normalize(source - offset, dim=-1)

    light, camera = direction_to(_LIGHT_DISTANCE * cameras.side), direction_to(cameras.distance)
    halfway = torch.nn.functional.normalize(light + camera, dim=-1)
    diffuse = (normals * light).sum(-1).abs()
    highlight = (normals * halfway).sum(-1).abs() ** _SHININESS
    return (_ALBEDO * _DIFFUSE * diffuse + _SPECULAR * highlight).clamp(0, 1)


def _average_samples(point_indices: Tensor, values: Tensor, background: float, size: int) -> Tensor:
    """Average the values (v, n) of points over the samples of each pixel to images (v, s, s)."""
    images = torch.empty(len(point_indices), size, size)
    index_array, value_array, image_array = point_indices.numpy(), values.numpy(), images.numpy()

    def work(start: int, stop: int) -> None:
        for view in range(start, stop):
            average_samples(index_array[view], value_array[view], background, image_array[view])

    with announced_compilation("the point renderer"):
        for_ranges(work, len(index_array))
    return images
