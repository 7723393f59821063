# SPDX-License-Identifier: Apache-2.0
"""Gray reference views of a mesh with depth and 2D-3D correspondences, as Looking3D's data set has them.

World +y is up. Cameras stand on a ring around the origin, at azimuth zero on +x, and look at the surface's centroid.
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
"""Radius of a mesh around the origin that fits into views from distance 3, although they aim at its centroid."""
SHARED_POINTS, CELL_POINTS = 2000, 10_000

_FOCAL = 355.0
_UP = (0.0, 1.0, 0.0)
# Fitted to the published renders: a lamp at the camera, and a floor.
_FLOOR, _HEADLIGHT = 67.5 / 255, 102.5 / 255


@dataclass(frozen=True)
class ReferenceView:
    """One reference view.

    Args:
        azimuth: of the camera, radians, from +x towards +z.
        elevation: of the camera above the xz plane, radians.
        distance: of the camera from the origin.
        camera: the camera.
        gray: brightness in [0, 1] on white.
        depth: depth along the optical axis at pixel centers, 0 where nothing is there.
        pixels: nearest (row, column) of points on the surface, the same points in every view of a mesh; they may lie
            outside the image.
        visible: which of those points the camera sees.
        xyz: position on the surface that is seen in each cell of 8 x 8 pixels, -1 where none is known. Cell (i, j)
            has its middle at the corner (8 i, 8 j) of pixels, as it is published.
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
    """Camera of a reference view.

    Args:
        azimuth: radians, from +x towards +z.
        elevation: radians above the xz plane.
        distance: from the origin.
        target: point on the optical axis.
    """
    level = distance * math.cos(elevation)
    eye = torch.tensor(
        [level * math.cos(azimuth), distance * math.sin(elevation), level * math.sin(azimuth)], dtype=torch.float64
    )
    pose = look_at(eye, target.double(), torch.tensor(_UP, dtype=torch.float64))
    half = IMAGE_SIZE / 2
    intrinsics = torch.tensor([[_FOCAL, 0, half], [0, _FOCAL, half], [0, 0, 1]], dtype=torch.float64)
    return Camera(pose, intrinsics, IMAGE_SIZE, IMAGE_SIZE)


def render_reference_views(
    mesh: Mesh, views: int = 20, elevation: float = math.radians(20), distance: float = 3.0, seed: int = 0
) -> Iterator[ReferenceView]:
    """Reference views at evenly spaced azimuths, one after the other.

    Args:
        mesh: the mesh, in about [-1, 1]; both sides of its faces are drawn, its colors and normals are not used.
        views: number of views.
        elevation: of the cameras, radians.
        distance: of the cameras from the origin; the mesh has to lie in front of them.
        seed: chooses the points of the correspondences.

    Raises:
        ValueError: if a number is out of its range, the surface has no area, or it reaches behind a camera.
    """
    reach = float(mesh.vertices.norm(dim=1).max())
    if views < 1 or not abs(elevation) < math.pi / 2 or not distance > reach:
        msg = (
            "views has to be 1 or more, elevation between -90 and 90 degrees and distance larger than the mesh's "
            f"reach of {reach:.3g}; got views {views}, elevation {math.degrees(elevation):g} degrees, "
            f"distance {distance:g}."
        )
        raise ValueError(msg)
    centroid = surface_centroid(mesh)
    points = sample_surface(mesh, SHARED_POINTS, np.random.default_rng([seed, 0]))
    for number in range(views):
        azimuth = 2 * math.pi * number / views
        camera = reference_camera(azimuth, elevation, distance, centroid)
        fresh = sample_surface(mesh, CELL_POINTS, np.random.default_rng([seed, 1, number]))
        gray, depth = _draw(mesh, camera)
        yield ReferenceView(
            azimuth=azimuth,
            elevation=elevation,
            distance=distance,
            camera=camera,
            gray=gray,
            depth=depth,
            pixels=_row_column(camera, points).round().long(),
            visible=visible_points(mesh, camera, points),
            xyz=_cells(camera, fresh[visible_points(mesh, camera, fresh)]),
        )


def _draw(mesh: Mesh, camera: Camera) -> tuple[Tensor, Tensor]:
    """Brightness and depth (H, W)."""
    fragments = rasterize_mesh(mesh, camera)
    corners = mesh.vertices[mesh.faces.long()[fragments.face.long()]]
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    cosine = torch.nn.functional.normalize(normal, dim=1) @ camera.camera_to_world[:3, 2].float()
    output = resolve(fragments, (_FLOOR + _HEADLIGHT * cosine.abs())[:, None].expand(-1, 3))
    return output.rgb[..., 0], output.depth


def _row_column(camera: Camera, points: Tensor) -> Tensor:
    uv, _ = camera.project(points)
    return uv.flip(-1)


def _cells(camera: Camera, points: Tensor) -> Tensor:
    """Positions by cell (32, 32, 3) float64; of several points in a cell the last one stays."""
    cell = (_row_column(camera, points) / CELL).round().long()
    inside = ((cell >= 0) & (cell < GRID_SIZE)).all(1)
    grid = np.full((GRID_SIZE, GRID_SIZE, 3), EMPTY)
    row, column = cell[inside].numpy().T
    # numpy keeps the last of several values for one index; torch promises nothing
    grid[row, column] = points[inside].numpy()
    return torch.from_numpy(grid)
