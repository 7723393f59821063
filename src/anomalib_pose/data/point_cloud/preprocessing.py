# SPDX-License-Identifier: Apache-2.0
"""Isolation of an object in an organized cloud: the supporting plane and stray points are removed.

This is PointAD's preprocessing of MVTec 3D-AD. Cells of an organized cloud hold a point where their z is not 0.
Lengths are in meters.
"""

import logging
import math

import numpy as np
import torch
from scipy.ndimage import binary_dilation, convolve1d, label
from torch import Tensor

from anomalib_pose.data.images import pad_to_square

logger = logging.getLogger(__name__)

_BORDER = 10
_INLIER_DISTANCE = 0.004
_REMOVED_DISTANCE = 0.005
_TRIALS = 300
_MAX_BORDER_POINTS = 4000
_RADIUS = 0.006
_CORE_POINTS = 30
_COARSE_FRACTION = 0.4  # of the median number of points around a point; enough in coarse clouds
_SIDE_MULTIPLE = 100
_MAX_VOXELS = 30_000_000


def plane_distance(xyz: Tensor, seed: int = 0) -> Tensor | None:
    """Return the distance of each cell's point to the plane on which the object lies.

    RANSAC finds the plane with most inliers among the points at the image's border: it tries planes through three of
    these points, and fits the best plane to its inliers.

    Args:
        xyz: organized cloud (H, W, 3).
        seed: seed of the random planes.

    Returns:
        Distances (H, W); or None if the border has fewer than three points, as in clouds without their plane, or if no
        three of them span a plane.
    """
    cells = np.zeros(xyz.shape[:2], bool)
    cells[:_BORDER], cells[-_BORDER:], cells[:, :_BORDER], cells[:, -_BORDER:] = True, True, True, True
    array = xyz.double().numpy()
    border = array[cells & (array[..., 2] != 0)]
    if len(border) < 3:
        return None
    rng = np.random.default_rng(seed)
    if len(border) > _MAX_BORDER_POINTS:
        border = border[rng.choice(len(border), _MAX_BORDER_POINTS, replace=False)]
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
    """Return the cells (H, W) of the largest connected component of a cloud.

    The side of a voxel is half the neighborhood radius of 6 mm. Voxels that touch and have enough points around them
    form a component; their other neighbors belong to the component too. This is close to DBSCAN with the same radius
    and 30 points, or fewer in coarse clouds. Surfaces on both sides of a jump in depth are separate, even if they are
    connected in the image.

    Args:
        xyz: organized cloud (H, W, 3) in meters.

    Raises:
        ValueError: if the cloud is thousands of voxels wide, as it is if lengths are not in meters.
    """
    valid = xyz[..., 2] != 0
    points = xyz[valid].double().numpy()
    component = torch.zeros_like(valid)
    if not len(points):
        return component
    side = _RADIUS / 2
    scaled = (points - points.min(0)) / side
    if math.prod((np.floor(scaled.max(0)) + 1).tolist()) > _MAX_VOXELS:
        extent = " x ".join(f"{value * side:.3g}" for value in scaled.max(0))
        msg = f"The cloud is {extent} m large: expected an object in meters; convert millimeters, remove stray points."
        raise ValueError(msg)
    index = scaled.astype(np.int64)
    shape = index.max(0) + 1
    count = np.zeros(shape, np.int32)
    np.add.at(count, tuple(index.T), 1)
    neighbors = count
    for axis in range(3):
        neighbors = convolve1d(neighbors, np.ones(3, np.int32), axis, mode="constant")
    threshold = min(_CORE_POINTS, _COARSE_FRACTION * float(np.median(neighbors[tuple(index.T)])))
    labels, components = label((count > 0) & (neighbors >= threshold), np.ones((3, 3, 3)))
    if not components:
        return component
    point_labels = labels[tuple(index.T)]
    largest = labels == np.bincount(point_labels[point_labels > 0]).argmax()
    component[valid] = torch.from_numpy(binary_dilation(largest, np.ones((3, 3, 3)))[tuple(index.T)])
    return component


def isolate_object(
    xyz: Tensor, rgb: Tensor | None = None, gt_mask: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Remove the plane on which an object lies, pad to a square, and keep the largest connected component.

    Args:
        xyz: organized cloud (H, W, 3) in meters; 0 where there is no point.
        rgb: image (3, H, W); removed points become black.
        gt_mask: mask of the defect (H, W); it is padded only.
        seed: seed of the search for the plane.

    Returns:
        Cloud (S, S, 3), image (3, S, S) and mask (S, S), where S is a multiple of 100.

    Raises:
        ValueError: if sizes differ, or no point is left.
    """
    size = tuple(xyz.shape[:2])
    for name, channels in (("image", rgb), ("mask", gt_mask)):
        if channels is not None and tuple(channels.shape[-2:]) != size:
            msg = (
                f"The {name} has (height, width) {tuple(channels.shape[-2:])}, but its cloud has {size}: both should "
                "be one size."
            )
            raise ValueError(msg)
    valid = xyz[..., 2] != 0
    distance = plane_distance(xyz, seed)
    if distance is None:
        logger.info("The points at the image's border span no plane: no plane below the object is removed.")
    else:
        valid &= distance > _REMOVED_DISTANCE
    plane = torch.zeros_like(valid) if distance is None else distance <= _REMOVED_DISTANCE
    object_xyz = torch.where(valid[..., None], xyz, 0.0).permute(2, 0, 1)
    object_xyz = pad_to_square(object_xyz, multiple=_SIDE_MULTIPLE).permute(1, 2, 0)
    component = largest_component(object_xyz)
    if not bool(component.any()):
        msg = f"Nothing is left of a cloud of {int((xyz[..., 2] != 0).sum())} points without its plane."
        raise ValueError(msg)
    stray = (object_xyz[..., 2] != 0) & ~component
    if rgb is not None:
        rgb = pad_to_square(torch.where(plane & (xyz[..., 2] != 0), 0.0, rgb), multiple=_SIDE_MULTIPLE)
        rgb = torch.where(stray, 0.0, rgb)
    if gt_mask is not None:
        gt_mask = pad_to_square(gt_mask, multiple=_SIDE_MULTIPLE)
    return torch.where(component[..., None], object_xyz, 0.0), rgb, gt_mask
