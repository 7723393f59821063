# SPDX-License-Identifier: Apache-2.0
"""Gray reference views of a mesh with depth and 2D-3D correspondences, in the form of Looking3D's data set.

World +y is up. Cameras stand on a ring around the origin, with azimuth 0 on +x, and look at the surface's centroid.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.render.mesh import Mesh, rasterize_mesh, resolve
from anomalib_pose.render.visibility import sample_surface, surface_centroid, visible_points

IMAGE_SIZE = 256
GRID_SIZE = 32
CELL = IMAGE_SIZE // GRID_SIZE
EMPTY = -1.0
FITTING_RADIUS = 0.9
"""Radius around the origin of a mesh that fits into views from distance 3, although cameras aim at its centroid."""
SHARED_POINTS, CELL_POINTS = 2000, 10_000

_FOCAL = 355.0
_UP = (0.0, 1.0, 0.0)
# Fitted to the published renderings: ambient light, and a lamp at the camera.
_AMBIENT, _HEADLIGHT = 67.5 / 255, 102.5 / 255


@dataclass(frozen=True)
class ReferenceView:
    """One reference view.

    Args:
        azimuth: azimuth of the camera, radians, from +x towards +z.
        elevation: elevation of the camera above the xz plane, radians.
        distance: distance of the camera from the origin.
        camera: camera of the view, world frame.
        gray: brightness in [0, 1] on white.
        depth: depth along the optical axis at pixel centers, 0 without a surface there.
        pixels: nearest (row, column) of points on the surface; the points are the same in all views of a mesh, and may
            lie outside the image.
        visible: whether the camera sees each of these points.
        xyz: position of the visible surface in each cell of 8 x 8 pixels, -1 if unknown. The center of cell (i, j) is
            the pixel corner (8 i, 8 j), as in the published data.
    """

    azimuth: float
    elevation: float
    distance: float
    camera: Camera
    gray: Float[Tensor, "h w"]
    depth: Float[Tensor, "h w"]
    pixels: Int[Tensor, "n 2"]
    visible: Bool[Tensor, " n"]
    xyz: Float[Tensor, "32 32 3"]


def reference_camera(azimuth: float, elevation: float, distance: float, target: Float[Tensor, "3"]) -> Camera:
    """Build the camera of a reference view.

    Args:
        azimuth: radians, from +x towards +z.
        elevation: radians above the xz plane.
        distance: distance from the origin.
        target: point (3,) on the optical axis, world frame.
    """
    horizontal = distance * math.cos(elevation)
    eye = torch.tensor(
        [horizontal * math.cos(azimuth), distance * math.sin(elevation), horizontal * math.sin(azimuth)],
        dtype=torch.float64,
    )
    pose = look_at(eye, target.double(), torch.tensor(_UP, dtype=torch.float64))
    half = IMAGE_SIZE / 2
    intrinsics = torch.tensor([[_FOCAL, 0, half], [0, _FOCAL, half], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, intrinsics, IMAGE_SIZE, IMAGE_SIZE)


def render_reference_views(
    mesh: Mesh, views: int = 20, elevation: float = math.radians(20), distance: float = 3.0, seed: int = 0
) -> Iterator[ReferenceView]:
    """Render reference views at evenly spaced azimuths, one after the other.

    Args:
        mesh: mesh in about [-1, 1]; both sides of its faces are rendered, its colors and normals are ignored.
        views: number of views.
        elevation: elevation of the cameras, radians.
        distance: distance of the cameras from the origin; the mesh has to lie in front of the cameras.
        seed: seed of the points of the correspondences.

    Raises:
        ValueError: if a number is out of range, the surface has no area, or the surface reaches behind a camera.
    """
    reach = float(mesh.vertices.norm(dim=1).max())
    if views < 1 or not abs(elevation) < math.pi / 2 or not distance > reach:
        msg = (
            "views has to be 1 or more, elevation between -90 and 90 degrees, and distance larger than the mesh's "
            f"reach of {reach:.3g}; got views {views}, elevation {math.degrees(elevation):g} degrees, "
            f"distance {distance:g}."
        )
        raise ValueError(msg)
    centroid = surface_centroid(mesh)
    points = sample_surface(mesh, SHARED_POINTS, np.random.default_rng([seed, 0]))
    for number in range(views):
        azimuth = 2 * math.pi * number / views
        camera = reference_camera(azimuth, elevation, distance, centroid)
        cell_points = sample_surface(mesh, CELL_POINTS, np.random.default_rng([seed, 1, number]))
        gray, depth = _render(mesh, camera)
        yield ReferenceView(
            azimuth=azimuth,
            elevation=elevation,
            distance=distance,
            camera=camera,
            gray=gray,
            depth=depth,
            pixels=_row_column(camera, points).round().long(),
            visible=visible_points(mesh, camera, points),
            xyz=_cell_positions(camera, cell_points[visible_points(mesh, camera, cell_points)]),
        )


def _render(mesh: Mesh, camera: Camera) -> tuple[Tensor, Tensor]:
    """Render brightness and depth (H, W)."""
    fragments = rasterize_mesh(mesh, camera)
    corners = mesh.vertices[mesh.faces.long()[fragments.face.long()]]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    cosine = torch.nn.functional.normalize(normal, dim=1) @ camera.camera_to_world[:3, 2].float()
    output = resolve(fragments, (_AMBIENT + _HEADLIGHT * cosine.abs())[:, None].expand(-1, 3))
    return output.rgb[..., 0], output.depth


def _row_column(camera: Camera, points: Tensor) -> Tensor:
    """Project points (n, 3) to row and column (n, 2) in pixels."""
    uv, _ = camera.project(points)
    return uv.flip(-1)


def _cell_positions(camera: Camera, points: Tensor) -> Tensor:
    """Assign points (n, 3) to cells (32, 32, 3), float64; the last of several points in a cell stays."""
    cell = (_row_column(camera, points) / CELL).round().long()
    inside = ((cell >= 0) & (cell < GRID_SIZE)).all(1)
    grid = np.full((GRID_SIZE, GRID_SIZE, 3), EMPTY)
    row, column = cell[inside].numpy().T
    # NumPy keeps the last of several values for one index; torch does not guarantee an order.
    grid[row, column] = points[inside].numpy()
    return torch.from_numpy(grid)
