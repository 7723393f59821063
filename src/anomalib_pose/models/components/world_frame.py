# SPDX-License-Identifier: Apache-2.0
"""World frame of a detector: the user's world, centered on the object and in a decimal multiple of the user's unit.

Scenes, banks and pose search use float32, which resolves one part in ten million. In a world whose origin is a
kilometer away, nothing of an object of centimeters would be left. Poses in the user's world are therefore float64.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anomalib_pose.buffers import DoubleBuffers
from anomalib_pose.geometry import Camera, viewed_point

_USUAL_DISTANCE = 3.5
"""Distance of the cameras from the object in MAD; the scaled median distance is within a factor of 3.2 of it."""
_CENTERED = 0.5
"""Largest distance between origin and object, in median camera distances, at which the origin stays."""
_GRID = 1e-5
"""The center is a multiple of this fraction of the unit: a shift by a round number then changes no digit of a fit."""


class WorldFrame(DoubleBuffers):
    """Similarity between the user's world and the world of a detector; the identity until ``fit``.

    A world whose origin lies near the object, and whose cameras are 1.2 to 11 units from the object, stays as it is.

    Buffers: center (3,), the detector's origin in the user's world, float64; scale (), length of the detector's unit in
    the user's units, a power of ten, float64.
    """

    center: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def fit(self, cameras: Camera) -> Camera:
        """Choose the frame for training cameras, and return these cameras in it, float32.

        Args:
            cameras: C cameras in the user's world; float64 where numbers are large.

        Raises:
            ValueError: if positions are not finite, or all cameras are at one point.
        """
        poses = cameras.camera_to_world.double()
        middle = poses[:, :3, 3].mean(0)
        shifted = poses.clone()
        shifted[:, :3, 3] -= middle  # near the origin, the least squares of the axes lose no digits
        point, _ = viewed_point(replace(cameras, camera_to_world=shifted))
        distance = float((shifted[:, :3, 3] - point).norm(dim=-1).median())
        if not math.isfinite(distance):
            msg = "The training cameras should have finite positions: check the poses of the training images."
            raise ValueError(msg)
        exponent = round(math.log10(distance / _USUAL_DISTANCE)) if distance > 0 else 0
        scale = 10.0**exponent
        center = point + middle
        is_centered = float(center.norm()) <= _CENTERED * distance
        snapped = torch.zeros_like(center) if is_centered else (center / (_GRID * scale)).round() * (_GRID * scale)
        self.center = snapped.to(self.center)
        self.scale = torch.full_like(self.scale, scale)
        return replace(cameras, camera_to_world=self.to_detector(poses).float(), K=cameras.K.float())

    def to_detector(self, camera_to_world: Tensor) -> Tensor:
        """Convert poses (..., 4, 4) of the user's world to poses of the detector's world, float64."""
        poses = camera_to_world.double().clone()
        poses[..., :3, 3] = (poses[..., :3, 3] - self.center.to(poses)) / self.scale.to(poses)
        return poses

    def to_user(self, camera_to_world: Tensor) -> Tensor:
        """Convert poses (..., 4, 4) of the detector's world to poses of the user's world, float64."""
        poses = camera_to_world.double().clone()
        poses[..., :3, 3] = poses[..., :3, 3] * self.scale.to(poses) + self.center.to(poses)
        return poses

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the identity from checkpoints of earlier versions."""
        state_dict.setdefault(f"{prefix}center", torch.zeros_like(self.center))
        state_dict.setdefault(f"{prefix}scale", torch.ones_like(self.scale))
        super()._load_from_state_dict(state_dict, prefix, *args)
