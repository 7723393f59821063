# SPDX-License-Identifier: Apache-2.0
"""Views of a point cloud, and the pixel at which each point is seen (PointAD, section 3.1).

A cloud is turned about its mean, and each turned cloud is seen by a camera that takes in its bounding box. Frame: +x to
the right, +y up, +z towards the viewer; a depth camera's points get there by ``facing_viewer``.
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
from anomalib_pose.render.point_kernels import average_samples, draw_squares, find_nearest

VIEW_ANGLES: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    5: ((-45.0, 0.0, 45.0), (-30.0, 30.0)),
    9: ((-45.0, -15.0, 0.0, 15.0, 45.0), (-30.0, -15.0, 15.0, 30.0)),
    11: ((-45.0, -15.0, 0.0, 15.0, 45.0), (-45.0, -30.0, -15.0, 15.0, 30.0, 45.0)),
}
"""Degrees about x and about y by number of views; nine are the paper's, which names no angles for other numbers."""

# The paper's window and its camera: a field of view of 60 degrees, as near as 0.7 of the box's largest side allows.
WINDOW = 1024
_HALF_TANGENT = math.tan(math.pi / 6)
_FOCAL = WINDOW / 2 / _HALF_TANGENT
_ZOOM = 0.7
# Squares this many spacings of points wide leave no holes, and are the sizes that the paper chose by hand.
_SQUARE_IN_SPACINGS = 2.75
_SMALLEST_SQUARE = 3.0
_ALBEDO, _DIFFUSE, _SPECULAR, _SHININESS = 0.7, 1.32, 0.4, 100
_LIGHT_DISTANCE = 2.0
_BACKGROUND = 1.0


@dataclass(frozen=True)
class PointViews:
    """What each view shows, and where it shows each point.

    Args:
        images: shaded points on white, gray in [0, 1].
        owners: index of the point drawn at each sample, -1 for the background; there are as many samples a pixel and
            axis as the images were drawn with.
        pixels: row and column of each point's pixel.
        visible: whether the point is seen there.
    """

    images: Float[Tensor, "v s s"]
    owners: Int[Tensor, "v r r"]
    pixels: Int[Tensor, "v n 2"]
    visible: Bool[Tensor, "v n"]

    def masks(self, labels: Bool[Tensor, " n"]) -> Bool[Tensor, "v s s"]:
        """Pixels of which more than half of the samples show points with the label."""
        shares = labels.float().expand(len(self.owners), -1)
        return _average(self.owners, shares, 0.0, self.images.shape[-1]) > 0.5


def facing_viewer(points: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
    """Points of a depth camera (+y down, +z forward) in the frame of the views: half a turn about x."""
    return points * points.new_tensor([1.0, -1.0, -1.0])


def view_rotations(about_x: Sequence[float], about_y: Sequence[float]) -> Float[Tensor, "v 3 3"]:
    """Rotations of a cloud, first those about x, then those about y.

    Args:
        about_x: angles in degrees.
        about_y: angles in degrees.

    Raises:
        ValueError: if there is no angle.
    """
    if not len(about_x) + len(about_y):
        msg = "Views need at least one angle about x or y, got none."
        raise ValueError(msg)
    turns = [[angle, 0.0, 0.0] for angle in about_x] + [[0.0, angle, 0.0] for angle in about_y]
    return so3_exp(torch.deg2rad(torch.tensor(turns, dtype=torch.float64)))


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
    """Draw a cloud in every view, and find out where each point is seen (PointAD, section 3.1).

    Args:
        points: positions; see the module for the frame.
        normals: unit normals; their sign does not matter.
        rotations: turn the cloud about its mean.
        spacing: distance between neighboring points, in units of the points; sets the size of the squares.
        size: width and height of the views, pixels.
        point_size: side of a point's square in pixels of a window of 1024; None to choose it so that no holes show.
        samples: samples of a pixel along each axis.
        depth_tolerance: points this much behind the nearest one of their pixel are visible too, in units of the
            points; None for the paper's rule, the nearest point alone.

    Raises:
        ValueError: if there are no points, or they lie in one place, or a number is out of range.
    """
    _check(points, size, samples, point_size, depth_tolerance)
    turned = _turned(points.double(), rotations.double())
    cameras = _cameras(turned)
    xy, nearness = _project(turned, cameras)
    pixels, visible = _seen_at(xy, nearness, size, depth_tolerance)
    if point_size is None:
        point_size = max(_SQUARE_IN_SPACINGS * spacing * _FOCAL / cameras.distance.min().item(), _SMALLEST_SQUARE)
    resolution = size * samples
    owners = _draw(xy, nearness, point_size, resolution)
    gray = _shade(turned, normals.double() @ rotations.double().transpose(1, 2), cameras)
    return PointViews(_average(owners, gray, _BACKGROUND, size), owners, pixels, visible)


@dataclass(frozen=True)
class _Cameras:
    """Center and largest side of each turned cloud's box, and the distance that it is seen from."""

    center: Float[Tensor, "v 1 3"]
    side: Float[Tensor, "v 1"]
    distance: Float[Tensor, "v 1"]


def _check(points: Tensor, size: int, samples: int, point_size: float | None, tolerance: float | None) -> None:
    if size < 1 or samples < 1:
        msg = f"size and samples are numbers of pixels and samples, 1 or more, got {size} and {samples}."
        raise ValueError(msg)
    if point_size is not None and not point_size > 0:
        msg = f"point_size is the side of a square in pixels, above 0, got {point_size}."
        raise ValueError(msg)
    if tolerance is not None and tolerance < 0:
        msg = f"depth_tolerance is a distance, 0 or more, got {tolerance}."
        raise ValueError(msg)
    if not len(points) or not bool(torch.isfinite(points).all()) or bool((points == points[0]).all()):
        msg = f"A cloud needs finite points at different places, got {len(points)}: remove NaN and empty cells first."
        raise ValueError(msg)


def _turned(points: Tensor, rotations: Tensor) -> Tensor:
    """The cloud (v, n, 3) turned about its mean."""
    mean = points.mean(0)
    return (points - mean) @ rotations.transpose(1, 2) + mean


def _cameras(turned: Tensor) -> _Cameras:
    low, high = turned.amin(1, keepdim=True), turned.amax(1, keepdim=True)
    side = (high - low).amax(-1)
    return _Cameras((low + high) / 2, side, _ZOOM * side / _HALF_TANGENT)


def _project(turned: Tensor, cameras: _Cameras) -> tuple[Tensor, Tensor]:
    """Positions (v, n, 2), x and y in pixels of the window from its middle, downwards; and nearness (v, n)."""
    offset = turned - cameras.center
    scale = _FOCAL / (cameras.distance - offset[..., 2])
    return torch.stack([offset[..., 0] * scale, -offset[..., 1] * scale], -1), turned[..., 2].contiguous()


def _seen_at(xy: Tensor, nearness: Tensor, size: int, tolerance: float | None) -> tuple[Tensor, Tensor]:
    """Row and column (v, n, 2) and visibility (v, n): the nearest point of a pixel, or those little behind it."""
    # the published correspondences have the middle of the window at the center of a pixel, half a pixel early
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


def _draw(xy: Tensor, nearness: Tensor, point_size: float, resolution: int) -> Tensor:
    """Index of the point drawn at each sample (v, r, r), -1 for none."""
    scale = resolution / WINDOW
    position = ((xy + WINDOW / 2) * scale).permute(2, 0, 1).contiguous().numpy()
    depth = nearness.numpy()
    owners = np.full((len(depth), resolution, resolution), -1, np.int32)

    def work(start: int, stop: int) -> None:
        for view in range(start, stop):
            best = np.full((resolution, resolution), -np.inf)
            draw_squares(position[0, view], position[1, view], depth[view], point_size * scale / 2, best, owners[view])

    with announced_compilation("the point renderer"):
        for_ranges(work, len(depth))
    return torch.from_numpy(owners)


def _shade(turned: Tensor, normals: Tensor, cameras: _Cameras) -> Tensor:
    """Gray (v, n) of points lit from the front: both sides of a surface reflect alike."""
    offset, normals = (turned - cameras.center).float(), normals.float()

    def direction(distance: Tensor) -> Tensor:
        source = torch.nn.functional.pad(distance.float()[..., None], (2, 0))
        return torch.nn.functional.normalize(source - offset, dim=-1)

    light, eye = direction(_LIGHT_DISTANCE * cameras.side), direction(cameras.distance)
    halfway = torch.nn.functional.normalize(light + eye, dim=-1)
    diffuse = (normals * light).sum(-1).abs()
    highlight = (normals * halfway).sum(-1).abs() ** _SHININESS
    return (_ALBEDO * _DIFFUSE * diffuse + _SPECULAR * highlight).clamp(0, 1)


def _average(owners: Tensor, values: Tensor, background: float, size: int) -> Tensor:
    """Images (v, s, s) of the values (v, n) of the points drawn at each sample."""
    images = torch.empty(len(owners), size, size)
    drawn, of_points, out = owners.numpy(), values.numpy(), images.numpy()

    def work(start: int, stop: int) -> None:
        for view in range(start, stop):
            average_samples(drawn[view], of_points[view], background, out[view])

    with announced_compilation("the point renderer"):
        for_ranges(work, len(drawn))
    return images
