# SPDX-License-Identifier: Apache-2.0
"""Points on the surface of a mesh: sampling, and visibility from a camera."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.mesh_kernels import mark_hidden

# Relative depth difference at which a surface hides a point. The rounding of the point's own faces stays below it.
_TOLERANCE = 1e-6


def triangle_areas(mesh: Mesh) -> Float[Tensor, " f"]:
    """Compute the areas of a mesh's faces, float64."""
    corners = mesh.vertices.double()[mesh.faces.long()]
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2


def surface_centroid(mesh: Mesh) -> Float[Tensor, "3"]:
    """Compute the centroid of a mesh's surface, float64; surfaces inside other parts count too.

    Raises:
        ValueError: if the surface has no area.
    """
    areas = _check_area(triangle_areas(mesh))
    return (mesh.vertices.double()[mesh.faces.long()].mean(1) * areas[:, None]).sum(0) / areas.sum()


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> Float[Tensor, "n 3"]:
    """Sample random points on a mesh's surface, float64, uniformly by area.

    Args:
        mesh: mesh to sample.
        count: number of points.
        rng: source of randomness.

    Raises:
        ValueError: if the surface has no area.
    """
    areas = _check_area(triangle_areas(mesh)).numpy()
    face = rng.choice(len(areas), count, p=areas / areas.sum())
    first, second = rng.random((2, count))
    # The square root makes the density uniform; without it, points would crowd at the first corner.
    root = np.sqrt(first)
    weights = torch.from_numpy(np.stack([1 - root, root * (1 - second), root * second], 1))
    corners = mesh.vertices.double()[mesh.faces.long()[torch.from_numpy(face)]]
    return (corners * weights[..., None]).sum(1)


def visible_points(mesh: Mesh, camera: Camera, points: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
    """Find the points that no face hides; exact for the triangles, without the quantization of a depth map.

    Points outside the image are treated as if the image were larger. Points behind the camera are not visible. Faces
    that reach behind the camera hide nothing.

    Args:
        mesh: mesh that hides points; both sides of its faces hide.
        camera: one camera, without batch dimensions.
        points: positions in the world frame, on the surface or off it.

    Returns:
        mask (N,) of the visible points.
    """
    camera = camera.to(torch.float64)
    vertex_xy, vertex_depth = (values.numpy() for values in camera.project(mesh.vertices.double()))
    point_xy, point_depth = (values.numpy() for values in camera.project(points.double()))
    visible = np.zeros(len(points), bool)
    front = np.flatnonzero(point_depth > 0)
    if not len(front):
        return torch.from_numpy(visible)
    corner = np.floor(point_xy[front].min(0))
    cell = (point_xy[front] - corner).astype(np.int64)
    width, height = (int(last) + 1 for last in cell.max(0))
    cell_index = cell[:, 1] * width + cell[:, 0]
    order = np.argsort(cell_index, kind="stable")
    count = np.bincount(cell_index, minlength=width * height)
    cumulative = np.concatenate([[0], np.cumsum(count)])
    start = cumulative[np.arange(height)[:, None] * width + np.arange(width + 1)]
    sorted_front = front[order]
    hidden = np.zeros(len(sorted_front), bool)
    nearness = np.where(vertex_depth > 0, 1 / np.maximum(vertex_depth, np.finfo(float).tiny), 0.0)
    threshold = (1 + _TOLERANCE) / point_depth[sorted_front]
    points_xy = point_xy[sorted_front] - corner
    mark_hidden(vertex_xy - corner, nearness, mesh.faces.numpy(), points_xy, start, threshold, hidden)
    visible[sorted_front] = ~hidden
    return torch.from_numpy(visible)


def _check_area(areas: Tensor) -> Tensor:
    """Return the areas (F,) if their sum is positive."""
    if not bool(areas.sum() > 0):
        msg = f"A mesh should have a surface, got {len(areas)} faces with no area."
        raise ValueError(msg)
    return areas
