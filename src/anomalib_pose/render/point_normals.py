# SPDX-License-Identifier: Apache-2.0
"""Normals of points from planes fitted to their neighbors, and distances between neighboring points."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree
from torch import Tensor

_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def grid_normals(points: Float[Tensor, "h w 3"], valid: Bool[Tensor, "h w"], window: int = 7) -> Float[Tensor, "h w 3"]:
    """Estimate unit normals of an organized cloud from a plane through each square window; their sign is arbitrary.

    Args:
        points: positions, any unit and frame.
        valid: cells that hold a point; cells without a point are ignored, and their normal is 0.
        window: cells along a side; a window of 7 contains about as many points as the paper's 50 neighbors.
    """
    mask = valid.numpy()
    xyz = points.double().numpy()
    offset = np.where(mask[..., None], xyz - xyz[mask].mean(0), 0.0) if mask.any() else np.zeros_like(xyz)
    count = np.maximum(_window_mean(mask.astype(np.float64), window), 0.5 / window**2)
    mean = [_window_mean(offset[..., i], window) / count for i in range(3)]
    moments = [_window_mean(offset[..., i] * offset[..., j], window) / count - mean[i] * mean[j] for i, j in _PAIRS]
    normals = _smallest_axis(np.stack(moments, -1)[mask])
    out = np.zeros_like(xyz)
    out[mask] = normals
    return torch.from_numpy(out.astype(np.float32))


def neighbor_normals(points: Float[Tensor, "n 3"], neighbors: int = 30) -> Float[Tensor, "n 3"]:
    """Estimate unit normals of an unorganized cloud from a plane through nearest points; their sign is arbitrary.

    Args:
        points: positions, any unit and frame.
        neighbors: number of nearest points, the point itself included.

    Raises:
        ValueError: if there are fewer than three points, or ``neighbors`` is below three.
    """
    if min(len(points), neighbors) < 3:
        msg = f"Normals need at least three points and three neighbors, got {len(points)} and {neighbors}."
        raise ValueError(msg)
    xyz = points.double().numpy()
    _, index = cKDTree(xyz).query(xyz, min(neighbors, len(xyz)))
    offset = xyz[index] - xyz[index].mean(1, keepdims=True)
    moments = np.stack([(offset[..., i] * offset[..., j]).mean(1) for i, j in _PAIRS], -1)
    return torch.from_numpy(_smallest_axis(moments).astype(np.float32))


def grid_spacing(points: Float[Tensor, "h w 3"], valid: Bool[Tensor, "h w"]) -> float:
    """Compute the median distance between points in neighboring cells; 0 if no two neighbors hold points.

    Args:
        points: positions, any unit.
        valid: cells that hold a point.
    """
    distances = []
    for axis in (0, 1):
        length = points.shape[axis]
        near, far = (points.narrow(axis, start, length - 1) for start in (0, 1))
        both = valid.narrow(axis, 0, length - 1) & valid.narrow(axis, 1, length - 1)
        distances.append((near - far)[both].norm(dim=-1))
    joined = torch.cat(distances)
    return joined.median().item() if len(joined) else 0.0


def point_spacing(points: Float[Tensor, "n 3"]) -> float:
    """Compute the median distance to the nearest neighbor; large clouds are subsampled to about 4096 queries.

    Raises:
        ValueError: if there are fewer than two points.
    """
    if len(points) < 2:
        msg = f"A distance between neighbors needs at least two points, got {len(points)}."
        raise ValueError(msg)
    xyz = points.double().numpy()
    distance, _ = cKDTree(xyz).query(xyz[:: max(1, len(xyz) // 4096)], 2)
    return float(np.median(distance[:, 1]))


def _window_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Average values over square windows; 0 outside the grid."""
    return uniform_filter(values, window, mode="constant")


def _smallest_axis(moments: np.ndarray) -> np.ndarray:
    """Compute the unit eigenvectors (n, 3) of the smallest eigenvalues of symmetric matrices (n, 6).

    The six columns are the rows of the upper triangle. The closed form is several times as fast as LAPACK on so many
    small matrices. If all eigenvalues are equal, the eigenvector is z.
    """
    a, b, c, d, e, f = moments.T / np.maximum(np.abs(moments).max(-1), 1e-300)
    middle = (a + d + f) / 3
    off_diagonal = b * b + c * c + e * e
    spread = np.sqrt(
        np.maximum(((a - middle) ** 2 + (d - middle) ** 2 + (f - middle) ** 2 + 2 * off_diagonal) / 6, 1e-300)
    )
    a1, d1, f1 = (a - middle) / spread, (d - middle) / spread, (f - middle) / spread
    b1, c1, e1 = b / spread, c / spread, e / spread
    half_determinant = (a1 * (d1 * f1 - e1 * e1) - b1 * (b1 * f1 - c1 * e1) + c1 * (b1 * e1 - c1 * d1)) / 2
    # The eigenvalues are twice the cosines of three angles, 120 degrees apart. This is the smallest one.
    smallest = 2 * np.cos(np.arccos(np.clip(half_determinant, -1, 1)) / 3 + 2 * np.pi / 3)
    rows = np.stack(
        [
            np.stack([a1 - smallest, b1, c1], -1),
            np.stack([b1, d1 - smallest, e1], -1),
            np.stack([c1, e1, f1 - smallest], -1),
        ]
    )
    candidates = np.stack([np.cross(rows[i], rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))])
    length = np.linalg.norm(candidates, axis=-1)
    best = length.argmax(0)
    index = np.arange(len(best))
    axis = candidates[best, index]
    norm = length[best, index][:, None]
    return np.where(norm > 1e-9, axis / np.maximum(norm, 1e-300), [0.0, 0.0, 1.0])
