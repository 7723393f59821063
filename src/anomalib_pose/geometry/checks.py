# SPDX-License-Identifier: Apache-2.0
"""Checks of cameras before anything is computed from them: numbers that are finite, fit float32 and are plausible."""

import math

import torch
from torch import Tensor

_FOCAL_BOUNDS = (0.05, 500.0)
"""Plausible focal lengths, as multiples of the image size: from a fisheye's to that of a long telephoto lens."""
_CENTER_BOUND = 3.0
"""Largest plausible distance between principal point and image center, in image sizes; crops have it outside."""
_MAX_SKEW = 0.1
_LARGEST = 1e30  # float32 ends at 3e38, and distances are squared only after the world is centered and scaled
_RIGID_TOLERANCE = 1e-2


def check_intrinsics(K: Tensor, width: int, height: int, where: str) -> None:  # noqa: N803
    """Check that intrinsics are finite and plausible for an image of a given size.

    Focal lengths in millimeters, in fractions of the image, or of another resolution are refused.

    Args:
        K: intrinsics (3, 3) in pixels.
        width: image width in pixels.
        height: image height in pixels.
        where: what the intrinsics belong to, for example a file; begins the error message.

    Raises:
        ValueError: if the shape is wrong, a number is not finite, or a number is implausible for the size.
    """
    check_matrix(K, where)
    fx, fy, cx, cy = (float(K[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    values = f"fx = {fx:g}, fy = {fy:g}, cx = {cx:g}, cy = {cy:g}"
    for focal, center, size in ((fx, cx, width), (fy, cy, height)):
        plausible_focal = _FOCAL_BOUNDS[0] <= focal / max(width, height) <= _FOCAL_BOUNDS[1]
        if not plausible_focal or abs(center / size - 0.5) > _CENTER_BOUND:
            msg = (
                f"{where}: the intrinsics ({values}) do not fit an image of {width} x {height} pixels: expected focal "
                "lengths and principal point in pixels of this image."
            )
            raise ValueError(msg)


def check_matrix(K: Tensor, where: str) -> None:  # noqa: N803
    """Check that intrinsics are a matrix of finite numbers with focal lengths above 0, for an image of any size.

    Args:
        K: intrinsics (3, 3) in pixels.
        where: what the intrinsics belong to; begins the error message.

    Raises:
        ValueError: if the shape is wrong, a number is not finite, or the matrix is not one of intrinsics.
    """
    if K.shape != (3, 3):
        msg = f"{where}: the intrinsics K should be (3, 3), got {tuple(K.shape)}."
        raise ValueError(msg)
    matrix = K.detach().double().cpu()
    (fx, skew, cx), (below, fy, cy), last = matrix.tolist()
    values = f"fx = {fx:g}, fy = {fy:g}, cx = {cx:g}, cy = {cy:g}"
    if not bool(matrix.isfinite().all()):
        msg = f"{where}: the intrinsics K should be finite numbers, got {values}."
        raise ValueError(msg)
    if min(fx, fy) <= 0:
        msg = f"{where}: the intrinsics K should have focal lengths above 0, got {values}."
        raise ValueError(msg)
    if last != [0, 0, 1] or below != 0 or abs(skew) > _MAX_SKEW * fx:
        msg = f"{where}: the intrinsics K should be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {matrix.tolist()}."
        raise ValueError(msg)


def check_distortion(distortion: tuple[float, ...], where: str) -> None:
    """Check that the coefficients of a lens distortion are finite.

    Args:
        distortion: OpenCV's coefficients.
        where: what the coefficients belong to; begins the error message.

    Raises:
        ValueError: if a coefficient is NaN, infinite or too large.
    """
    if not all(math.isfinite(coefficient) and abs(coefficient) < _LARGEST for coefficient in distortion):
        msg = f"{where}: the coefficients of the lens distortion should be finite numbers, got {list(distortion)}."
        raise ValueError(msg)


def check_pose(camera_to_world: Tensor, where: str) -> None:
    """Check that a pose is a rigid motion of finite numbers.

    Args:
        camera_to_world: pose (4, 4).
        where: what the pose belongs to, for example a file; begins the error message.

    Raises:
        ValueError: if the shape is wrong, a number is not finite or does not fit float32, or the pose is not rigid.
    """
    if camera_to_world.shape != (4, 4):
        msg = f"{where}: the pose should be (4, 4), got {tuple(camera_to_world.shape)}."
        raise ValueError(msg)
    pose = camera_to_world.detach().double().cpu()
    if not bool((pose.abs() < _LARGEST).all()):  # NaN too
        msg = f"{where}: the pose should consist of finite numbers below {_LARGEST:g}, got {pose[:3, 3].tolist()}."
        raise ValueError(msg)
    rotation, last = pose[:3, :3], pose.new_tensor([0, 0, 0, 1])
    deviation = float((rotation @ rotation.T - torch.eye(3, dtype=pose.dtype)).abs().max())
    mirrored = float(torch.linalg.det(rotation)) < 0
    if deviation > _RIGID_TOLERANCE or mirrored or not torch.allclose(pose[3], last):
        msg = f"{where}: the pose is not a rigid motion: expected a rotation without scale or mirror, and a position."
        raise ValueError(msg)
