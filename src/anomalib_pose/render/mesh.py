# SPDX-License-Identifier: Apache-2.0
"""Deterministic z-buffer rasterizer for triangle meshes, in software.

The steps are separate, so that callers can compare two meshes sample by sample. ``rasterize_mesh`` finds the visible
surface and ``resolve`` averages samples to pixels. ``mesh_lighting`` adds ``bake_light`` (light at each vertex),
``shade`` (colors of samples) and ``render_mesh`` (all steps).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.mesh_kernels import interpolate, rasterize_triangles

_NEAR = 1e-6


@dataclass(frozen=True)
class Mesh:
    """Triangles with colors and normals at their vertices.

    Args:
        vertices: positions in the world frame.
        faces: indices of three vertices each, in any order: faces are visible from both sides.
        colors: display colors in [0, 1].
        normals: unit normals on the lit side.
        closed: True if the faces bound solids; faces with normals away from the camera are then not rasterized.

    Raises:
        ValueError: if a face refers to a vertex that does not exist.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]
    colors: Float[Tensor, "v 3"]
    normals: Float[Tensor, "v 3"]
    closed: bool = False

    def __post_init__(self) -> None:
        if len(self.faces) and not 0 <= int(self.faces.min()) <= int(self.faces.max()) < len(self.vertices):
            msg = (
                f"Faces of a mesh should refer to vertices 0..{len(self.vertices) - 1}, "
                f"found {int(self.faces.min())}..{int(self.faces.max())}."
            )
            raise ValueError(msg)

    @classmethod
    def flat(
        cls, vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], face_colors: Float[Tensor, "f 3"]
    ) -> "Mesh":
        """Build a mesh with one color and one normal per face; no two faces share vertices.

        Args:
            vertices: positions in the world frame.
            faces: indices, counter-clockwise as seen from the lit side.
            face_colors: display colors in [0, 1].
        """
        corners = vertices[faces.long()]
        normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        index = torch.arange(3 * len(faces), dtype=faces.dtype).reshape(-1, 3)
        return cls(corners.reshape(-1, 3), index, face_colors.repeat_interleave(3, 0), normal.repeat_interleave(3, 0))


@dataclass(frozen=True)
class Fragments:
    """Samples of an image on the mesh, in row-major order.

    Args:
        index: position in the flattened grid of samples, which has ``height * supersampling`` rows.
        face: index of the visible face.
        weights: barycentric weights on the face, corrected for perspective.
        depth: depth along the optical axis.
        width: image width in pixels.
        height: image height in pixels.
        supersampling: samples per pixel along each axis.
    """

    index: Int[Tensor, " n"]
    face: Int[Tensor, " n"]
    weights: Float[Tensor, "n 3"]
    depth: Float[Tensor, " n"]
    width: int
    height: int
    supersampling: int

    def __getitem__(self, selection: Tensor | slice) -> "Fragments":
        """Select samples by a mask, indices or a slice."""
        parts = {name: getattr(self, name)[selection] for name in ("index", "face", "weights", "depth")}
        return replace(self, **parts)

    @property
    def pixel(self) -> np.ndarray:
        """Position in the flattened image of each sample's pixel."""
        row, column = np.divmod(self.index.numpy(), self.width * self.supersampling)
        return row // self.supersampling * self.width + column // self.supersampling

    def interpolate(self, mesh: Mesh, values: Float[Tensor, "v c"]) -> Float[Tensor, "n c"]:
        """Interpolate values (V, C) of the vertices at the samples."""
        out = np.empty((len(self.face), values.shape[1]), np.float32)
        faces, face, weights = mesh.faces.numpy(), self.face.numpy(), self.weights.numpy()
        interpolate(np.ascontiguousarray(values.numpy(), np.float32), faces, face, weights, out)
        return torch.from_numpy(out)

    def grid(self, values: Tensor, fill: float | int) -> Tensor:
        """Arrange values (n, ...) of the samples on the grid (H s, W s, ...); ``fill`` where no face is visible."""
        rows, columns = self.height * self.supersampling, self.width * self.supersampling
        out = torch.full((rows * columns, *values.shape[1:]), fill, dtype=values.dtype)
        out[self.index] = values
        return out.unflatten(0, (rows, columns))


@dataclass(frozen=True)
class MeshOutput:
    """Images of a mesh.

    Args:
        rgb: color in [0, 1] over the background.
        depth: depth along the optical axis at the pixel's center, 0 without a face there.
        alpha: covered fraction of the pixel.
        face: index of the face at the pixel's center, -1 without one.
    """

    rgb: Float[Tensor, "h w 3"]
    depth: Float[Tensor, "h w"]
    alpha: Float[Tensor, "h w"]
    face: Int[Tensor, "h w"]


def rasterize_mesh(mesh: Mesh, camera: Camera, supersampling: int = 3) -> Fragments:
    """Find the visible surface at a regular grid of samples; faces that reach behind the camera are skipped.

    Args:
        mesh: mesh to rasterize.
        camera: one camera, without batch dimensions.
        supersampling: samples per pixel along each axis; odd, so that one sample is the pixel's center.

    Raises:
        ValueError: if the camera is a batch or ``supersampling`` is even or below 1.
    """
    if camera.batch_shape:
        msg = f"A mesh is rendered from one camera at a time, got a batch {tuple(camera.batch_shape)}: index it."
        raise ValueError(msg)
    if supersampling < 1 or supersampling % 2 == 0:
        msg = f"supersampling should be odd, so that a sample lies at the pixel's center, got {supersampling}."
        raise ValueError(msg)
    uv, z = camera.to(torch.float64).project(mesh.vertices.double())
    depth = z.numpy()
    nearness = np.where(depth > _NEAR, 1 / np.maximum(depth, _NEAR), 0.0)
    rows, columns = camera.height * supersampling, camera.width * supersampling
    best, owner, weights = depth_buffers(rows, columns)
    face_indices = _front_faces(mesh, camera.center.float() - mesh.vertices)
    faces = mesh.faces.numpy()[face_indices]
    rasterize_triangles(np.ascontiguousarray(uv.numpy() * supersampling), nearness, faces, best, owner, weights)
    index = np.flatnonzero(owner >= 0)
    last_weights = weights.reshape(-1, 2)[index]
    return Fragments(
        index=torch.from_numpy(index),
        face=torch.from_numpy(face_indices[owner.reshape(-1)[index]]),
        weights=torch.from_numpy(np.concatenate([1 - last_weights.sum(1, keepdims=True), last_weights], 1)),
        depth=torch.from_numpy((1 / best.reshape(-1)[index]).astype(np.float32)),
        width=camera.width,
        height=camera.height,
        supersampling=supersampling,
    )


def resolve(
    fragments: Fragments, samples: Float[Tensor, "n 3"], background: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> MeshOutput:
    """Average colors of samples to pixels; take depth and face at the pixel's center.

    Args:
        fragments: visible samples.
        samples: colors of the samples.
        background: color in [0, 1] of pixels beside the mesh.
    """
    s = fragments.supersampling
    count = fragments.height * fragments.width
    sums = [np.bincount(fragments.pixel, channel, count) for channel in (*samples.numpy().T, np.ones(len(samples)))]
    pixels = torch.from_numpy(np.stack(sums, 1) / s**2).float().unflatten(0, (fragments.height, fragments.width))
    alpha = pixels[..., 3]
    rgb = pixels[..., :3] + (1 - alpha)[..., None] * torch.tensor(background)
    center = (slice(s // 2, None, s), slice(s // 2, None, s))
    return MeshOutput(
        rgb.clamp(0, 1), fragments.grid(fragments.depth, 0.0)[center], alpha, fragments.grid(fragments.face, -1)[center]
    )


def depth_buffers(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make the buffers of ``rasterize_triangles``: nearness, face index and two barycentric weights."""
    best = np.zeros((rows, columns))
    return best, np.full((rows, columns), -1, np.int32), np.zeros((rows, columns, 2), np.float32)


def _front_faces(mesh: Mesh, to_camera: Tensor) -> np.ndarray:
    """Return the indices of the faces to rasterize: for solids, faces with a normal towards the camera."""
    if not mesh.closed:
        return np.arange(len(mesh.faces))
    faces_camera = ((mesh.normals * to_camera).sum(1) > 0).numpy()
    return np.flatnonzero(faces_with_marked_vertices(faces_camera, mesh.faces.numpy()))


def faces_with_marked_vertices(marked: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return a mask (F,) of the faces with at least one marked vertex (V,)."""
    face_mask: np.ndarray = marked[faces[:, 0]] | marked[faces[:, 1]] | marked[faces[:, 2]]
    return face_mask
