# SPDX-License-Identifier: Apache-2.0
"""The object alone: what stands on a table loses the table (PointAD's preparation of MVTec 3D-AD).

Cells of an organized cloud hold a point where their z is not 0. Lengths are in meters.
"""

import logging
import math

import numpy as np
import torch
from scipy.ndimage import binary_dilation, convolve1d, label
from torch import Tensor

logger = logging.getLogger(__name__)

_BORDER = 10
_INLIER_DISTANCE = 0.004
_REMOVED_DISTANCE = 0.005
_TRIALS = 300
_MOST_BORDER_POINTS = 4000
_REACH = 0.006
_CORE_POINTS = 30
_COARSE_SHARE = 0.4  # of the usual number of points around one: in coarse clouds this is enough
_SIDE_STEP = 100
_MOST_VOXELS = 30_000_000


def plane_distance(xyz: Tensor, seed: int = 0) -> Tensor | None:
    """Distance of every cell's point to the plane on which an object lies.

    The plane is the one that most points of the image's border lie on, found by trying planes through three of them
    and fitted to its inliers.

    Args:
        xyz: organized cloud (H, W, 3).
        seed: chooses the planes that are tried.

    Returns:
        Distances (H, W); or None if the border has fewer than three points, as it has once the plane is removed.
    """
    cells = np.zeros(xyz.shape[:2], bool)
    cells[:_BORDER], cells[-_BORDER:], cells[:, :_BORDER], cells[:, -_BORDER:] = True, True, True, True
    array = xyz.double().numpy()
    border = array[cells & (array[..., 2] != 0)]
    if len(border) < 3:
        return None
    rng = np.random.default_rng(seed)
    if len(border) > _MOST_BORDER_POINTS:
        border = border[rng.choice(len(border), _MOST_BORDER_POINTS, replace=False)]
    corners = border[rng.integers(0, len(border), (_TRIALS, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    usable = length > 0
    if not usable.any():
        return None
    normals, corners = normals[usable] / length[usable, None], corners[usable]
    distance = np.abs(border @ normals.T - (normals * corners[:, 0]).sum(1))
    inliers = border[distance[:, (distance < _INLIER_DISTANCE).sum(0).argmax()] < _INLIER_DISTANCE]
    mean = inliers.mean(0)
    normal = np.linalg.svd(inliers - mean, full_matrices=False)[2][2]
    return torch.from_numpy(np.abs((array - mean) @ normal))


def largest_component(xyz: Tensor) -> Tensor:
    """Cells (H, W) of the largest connected part of a cloud.

    Points are gathered in voxels of half of the reach of 6 mm; voxels that touch and have enough points around them
    belong together, and those that only touch one of these belong to it too. This is close to DBSCAN with that reach
    and 30 points, or fewer in coarse clouds; a jump in depth parts what only looks connected in the image.

    Args:
        xyz: organized cloud (H, W, 3) in meters.

    Raises:
        ValueError: if the cloud is thousands of voxels wide, as it is if lengths are not in meters.
    """
    valid = xyz[..., 2] != 0
    points = xyz[valid].double().numpy()
    kept = torch.zeros_like(valid)
    if not len(points):
        return kept
    side = _REACH / 2
    index = ((points - points.min(0)) / side).astype(np.int64)
    shape = index.max(0) + 1
    if math.prod(shape.tolist()) > _MOST_VOXELS:
        extent = " x ".join(f"{value * side:.3g}" for value in shape)
        msg = f"The cloud is {extent} m large: expected an object in meters; convert millimeters, remove stray points."
        raise ValueError(msg)
    count = np.zeros(shape, np.int32)
    np.add.at(count, tuple(index.T), 1)
    around = count
    for axis in range(3):
        around = convolve1d(around, np.ones(3, np.int32), axis, mode="constant")
    enough = min(_CORE_POINTS, _COARSE_SHARE * float(np.median(around[tuple(index.T)])))
    parts, found = label((count > 0) & (around >= enough), np.ones((3, 3, 3)))
    if not found:
        return kept
    part = parts[tuple(index.T)]
    largest = parts == np.bincount(part[part > 0]).argmax()
    kept[valid] = torch.from_numpy(binary_dilation(largest, np.ones((3, 3, 3)))[tuple(index.T)])
    return kept


def pad_to_square(channels: Tensor) -> Tensor:
    """Pad (C, H, W) with 0 on all sides to a square whose side is a multiple of 100."""
    height, width = channels.shape[-2:]
    side = math.ceil(max(height, width) / _SIDE_STEP) * _SIDE_STEP
    top, left = (side - height) // 2, (side - width) // 2
    return torch.nn.functional.pad(channels, (left, side - width - left, top, side - height - top))


def isolate_object(
    xyz: Tensor, rgb: Tensor | None = None, gt_mask: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Remove the plane that an object lies on, pad to a square, and keep the largest connected part.

    Args:
        xyz: organized cloud (H, W, 3) in meters; 0 where there is no point.
        rgb: image (3, H, W); black where something was removed.
        gt_mask: mask of the defect (H, W), which is padded only.
        seed: chooses the planes that are tried.

    Returns:
        The three, of a square size.

    Raises:
        ValueError: if sizes differ, or nothing is left.
    """
    size = tuple(xyz.shape[:2])
    for name, other in (("image", rgb), ("mask", gt_mask)):
        if other is not None and tuple(other.shape[-2:]) != size:
            msg = (
                f"The {name} has (height, width) {tuple(other.shape[-2:])}, its cloud {size}: both should be one size."
            )
            raise ValueError(msg)
    valid = xyz[..., 2] != 0
    distance = plane_distance(xyz, seed)
    if distance is None:
        logger.info("The image's border has no points: nothing is removed as the plane that the object lies on.")
    else:
        valid &= distance > _REMOVED_DISTANCE
    plane = torch.zeros_like(valid) if distance is None else distance <= _REMOVED_DISTANCE
    padded = pad_to_square(torch.where(valid[..., None], xyz, 0.0).permute(2, 0, 1)).permute(1, 2, 0)
    kept = largest_component(padded)
    if not bool(kept.any()):
        msg = f"Nothing is left of a cloud of {int((xyz[..., 2] != 0).sum())} points without its plane."
        raise ValueError(msg)
    stray = (padded[..., 2] != 0) & ~kept
    if rgb is not None:
        rgb = torch.where(stray, 0.0, pad_to_square(torch.where(plane & (xyz[..., 2] != 0), 0.0, rgb)))
    if gt_mask is not None:
        gt_mask = pad_to_square(gt_mask[None])[0]
    return torch.where(kept[..., None], padded, 0.0), rgb, gt_mask
