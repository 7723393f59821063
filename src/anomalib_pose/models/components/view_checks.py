# SPDX-License-Identifier: Apache-2.0
"""Checks of training views before a fit: blank photos, cameras that look away, duplicate and contradictory views."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.geometry.checks import check_intrinsics, check_pose
from anomalib_pose.models.components.view_collection import CollectedView

logger = logging.getLogger(__name__)

_BLANK_RANGE = 2.5 / 255
"""Range of the pixel values of a blank photo."""
_OUTSIDE = 1.0
"""Distance between the image and the projection of the common point, in image sizes, from which a camera looks away."""
_SAME_PLACE = 1e-6
"""Distance between equal camera positions, as a fraction of the distance to the object."""
_SAME_ROTATION = 1e-6
_MIN_SPREAD = 1e-3
"""Smallest eigenvalue of the axes' projections at which the axes determine a common point; parallel axes do not."""
_ROBUST_ROUNDS = 10
_REFUSED_FRACTION = 2 / 3
_NAMED = 5


def check_views(views: Sequence[CollectedView]) -> None:
    """Name the training views that cannot be right, and refuse the views if two thirds of them cannot.

    Args:
        views: training views, at least one.

    Raises:
        ValueError: if a camera is not finite or implausible, or two thirds of the views are affected by one fault.
    """
    for view in views:
        height, width = view.image.shape[-2:]
        check_intrinsics(view.K, width, height, f"The image {view.name}")
        check_pose(view.camera_to_world, f"The image {view.name}")
    blank = [index for index, view in enumerate(views) if _is_blank(view.image)]
    _report(views, blank, "are blank", "show the object in them, or remove them")
    poses = torch.stack([view.camera_to_world for view in views])
    point = _common_point(poses)
    away = [] if point is None else _looking_away(views, poses, point)
    advice = "check the poses, and whether their axes are OpenGL's or OpenCV's"
    _report(views, away, "were taken by cameras that look away from the object", advice)
    same_image = _groups([_content(view.image) for view in views], excluded=set(blank))
    same_pose = _same_poses(poses, point)
    twice = [group for group in same_image if any(set(group) <= set(other) for other in same_pose)]
    advice = "remove the copies"
    _report(views, [index for group in twice for index in group[1:]], "occur twice", advice)
    moved = [index for group in same_image if group not in twice for index in group]
    _report(views, moved, "have equal pixels but different poses", "remove the wrong ones")
    copies = {index for group in twice for index in group}
    clashing = [index for group in same_pose if len(set(group) - copies) > 1 for index in group]
    _report(views, clashing, "have one pose but different pixels", "remove the wrong ones")


def _report(views: Sequence[CollectedView], indices: Sequence[int], fault: str, advice: str) -> None:
    """Log the names of views with a fault; refuse the views if two thirds have it."""
    if not indices:
        return
    names = sorted(views[index].name for index in set(indices))
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    text = f"{len(names)} of {len(views)} training images {fault}: {listed}"
    if len(views) > 2 and len(names) >= _REFUSED_FRACTION * len(views):
        msg = f"{text}. The object cannot be fitted to them: {advice}."
        raise ValueError(msg)
    logger.warning("%s. The fit continues; to improve it, %s.", text, advice)


def _is_blank(image: Float[Tensor, "3 h w"]) -> bool:
    flat = image.flatten(1)
    return bool((flat.amax(1) - flat.amin(1) <= _BLANK_RANGE).all())


def _looking_away(
    views: Sequence[CollectedView], poses: Float[Tensor, "c 4 4"], point: Float[Tensor, "3"]
) -> list[int]:
    """Return the views whose camera has the common point of the optical axes behind it or far outside of the image."""
    away = []
    for index, view in enumerate(views):
        height, width = view.image.shape[-2:]
        shifted = poses[index].clone()
        shifted[:3, 3] -= point
        uv, depth = Camera(shifted, view.K.double(), width, height).project(poses.new_zeros(1, 3))
        offset = (uv[0] / uv.new_tensor([width, height]) - 0.5).abs().max()
        if not float(depth[0]) > 0 or float(offset) > 0.5 + _OUTSIDE:
            away.append(index)
    return away


def _common_point(poses: Float[Tensor, "c 4 4"]) -> Float[Tensor, "3"] | None:
    """Return the point nearest to most optical axes, or None if the axes are parallel.

    The sum of the distances is minimized, not of their squares, so that a few wrong cameras do not move the point.
    """
    axes, middle = poses[:, :3, 2], poses[:, :3, 3].median(0).values
    centers = poses[:, :3, 3] - middle
    projections = torch.eye(3).to(axes) - axes[:, :, None] * axes[:, None, :]
    if len(poses) < 3 or float(torch.linalg.eigvalsh(projections.mean(0))[0]) < _MIN_SPREAD:
        return None
    weights = axes.new_ones(len(axes))
    point = axes.new_zeros(3)
    for _ in range(_ROBUST_ROUNDS):
        weighted = weights[:, None, None] * projections
        point = torch.linalg.lstsq(weighted.sum(0), (weighted @ centers[..., None]).sum(0)).solution[:, 0]
        distances = (projections @ (point - centers)[..., None])[..., 0].norm(dim=-1)
        weights = 1 / distances.clamp_min(1e-6 * float((point - centers).norm(dim=-1).median()) + 1e-300)
        weights = weights / weights.max()
    return point + middle


def _content(image: Tensor) -> str:
    return hashlib.sha256((image * 255).round().byte().contiguous().numpy().tobytes()).hexdigest()


def _groups(keys: Sequence[str], excluded: set[int]) -> list[list[int]]:
    """Return the indices of equal keys, for keys that occur more than once."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if index not in excluded:
            groups[key].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _same_poses(poses: Float[Tensor, "c 4 4"], point: Float[Tensor, "3"] | None) -> list[list[int]]:
    """Return groups of indices of views with one pose, compared at the distance of the optical axes' common point."""
    centers = poses[:, :3, 3] - poses[:, :3, 3].mean(0)
    offset = centers if point is None else poses[:, :3, 3] - point
    tolerance = _SAME_PLACE * float(offset.norm(dim=-1).median())
    near = torch.cdist(centers, centers) <= tolerance
    rotations = poses[:, :3, :3].flatten(1)
    near &= torch.cdist(rotations, rotations, p=float("inf")) <= _SAME_ROTATION
    groups: list[list[int]] = []
    grouped: set[int] = set()
    for index in range(len(poses)):
        members = near[index].nonzero()[:, 0].tolist()
        if len(members) > 1 and index not in grouped:
            groups.append(members)
            grouped |= set(members)
    return groups
