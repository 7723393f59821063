# SPDX-License-Identifier: Apache-2.0
"""Points on the surface of a mesh: where they lie, and which of them a camera sees."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.mesh import Mesh
from anomalib_pose.render.mesh_kernels import mark_hidden

# A surface that is nearer by this share of the depth hides a point; rounding of the point's own faces stays below it.
_SLACK = 1e-6


def triangle_areas(mesh: Mesh) -> Float[Tensor, " f"]:
    """Areas of a mesh's faces, float64."""
    corners = mesh.vertices.double()[mesh.faces.long()]
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1) / 2


def surface_centroid(mesh: Mesh) -> Float[Tensor, "3"]:
    """Mean position of a mesh's surface, float64; parts that lie inside each other count as well.

    Raises:
        ValueError: if the surface has no area.
    """
    areas = _positive(triangle_areas(mesh))
    return (mesh.vertices.double()[mesh.faces.long()].mean(1) * areas[:, None]).sum(0) / areas.sum()


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> Float[Tensor, "n 3"]:
    """Random points on a mesh's surface, float64, evenly by area.

    Args:
        mesh: the mesh.
        count: number of points.
        rng: source of randomness.

    Raises:
        ValueError: if the surface has no area.
    """
    areas = _positive(triangle_areas(mesh)).numpy()
    face = rng.choice(len(areas), count, p=areas / areas.sum())
    across, along = rng.random((2, count))
    # The square root makes the density even; without it points would crowd at the first corner.
    root = np.sqrt(across)
    weights = torch.from_numpy(np.stack([1 - root, root * (1 - along), root * along], 1))
    corners = mesh.vertices.double()[mesh.faces.long()[torch.from_numpy(face)]]
    return (corners * weights[..., None]).sum(1)


def visible_points(mesh: Mesh, camera: Camera, points: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
    """Which points no face hides; exact for the triangles as they are, without a depth map's steps.

    Points outside the image count as if the image reached them. Points behind the camera are not visible. Faces that
    reach behind the camera hide nothing.

    Args:
        mesh: what hides points; both sides of its faces do.
        camera: one camera, without batch dimensions.
        points: positions in the world frame, on the surface or off it.
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
    number = cell[:, 1] * width + cell[:, 0]
    order = np.argsort(number, kind="stable")
    count = np.bincount(number, minlength=width * height)
    before = np.concatenate([[0], np.cumsum(count)])
    start = before[np.arange(height)[:, None] * width + np.arange(width + 1)]
    chosen = front[order]
    hidden = np.zeros(len(chosen), bool)
    nearness = np.where(vertex_depth > 0, 1 / np.maximum(vertex_depth, np.finfo(float).tiny), 0.0)
    least = (1 + _SLACK) / point_depth[chosen]
    mark_hidden(vertex_xy - corner, nearness, mesh.faces.numpy(), point_xy[chosen] - corner, start, least, hidden)
    visible[chosen] = ~hidden
    return torch.from_numpy(visible)


def _positive(areas: Tensor) -> Tensor:
    if not bool(areas.sum() > 0):
        msg = f"The mesh has {len(areas)} faces and no area: expected a surface."
        raise ValueError(msg)
    return areas
