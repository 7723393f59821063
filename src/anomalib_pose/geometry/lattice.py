# SPDX-License-Identifier: Apache-2.0
"""Camera positions around an object: MAD's training lattice and uniform view spheres."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


def look_at(
    eye: Float[Tensor, "*batch 3"], target: Float[Tensor, "3"], up: Float[Tensor, "3"]
) -> Float[Tensor, "*batch 4 4"]:
    """Return camera-to-world poses (OpenCV axes) that look from ``eye`` to ``target`` with ``up`` upwards in the image.

    If the line of sight is parallel to ``up``, another axis replaces ``up``, so that the pose is always rigid.

    Args:
        eye: optical centers in the world frame.
        target: point on the optical axis, world frame.
        up: upward direction of the world, of any length.

    Raises:
        ValueError: if an optical center equals the target.
    """
    forward = target - eye
    distance = forward.norm(dim=-1, keepdim=True)
    if bool((distance == 0).any()):
        msg = f"The target of a camera should differ from its optical center, got {target.tolist()} for both."
        raise ValueError(msg)
    forward = forward / distance
    right = torch.linalg.cross(forward, up.expand_as(forward))
    fallback = torch.zeros_like(forward)
    fallback[..., int(up.abs().argmin())] = 1
    parallel = right.norm(dim=-1, keepdim=True) < 1e-6 * up.norm()
    right = torch.where(parallel, torch.linalg.cross(forward, fallback), right)
    right = right / right.norm(dim=-1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    top = torch.stack([right, down, forward, eye], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def mad_lattice(radius: float) -> Float[Tensor, "210 4 4"]:
    """Return the 210 training poses of MAD-Sim: 14 rings of 15 azimuths that look at the origin with z upwards.

    Ring ``i // 15`` has the elevation ``85 - (170 / 13) (i // 15)`` degrees, view ``i % 15`` the azimuth
    ``120 + (320 / 14) (i % 15)`` degrees. No view has an azimuth between 80 and 120 degrees.

    Args:
        radius: distance of the cameras from the origin; 3.0, 3.5 or 4.0 in MAD.
    """
    index = torch.arange(210, dtype=torch.float64)
    elevation = torch.deg2rad(85 - (170 / 13) * (index // 15))
    azimuth = torch.deg2rad(120 + (320 / 14) * (index % 15))
    return _sphere_poses(elevation, azimuth, radius).float()


def view_sphere(
    count: int,
    radius: float,
    max_elevation: float = math.pi / 2,
    min_elevation: float = -math.pi / 2,
    *,
    azimuth_offset: float = 0.0,
) -> Float[Tensor, "count 4 4"]:
    """Return poses on a sphere, or a band of it, that look at the origin with z upwards.

    The poses follow a golden spiral, which covers the sphere evenly.

    Args:
        count: number of poses.
        radius: distance from the origin.
        max_elevation: upper edge of the band, radians.
        min_elevation: lower edge of the band, radians.
        azimuth_offset: rotation of the whole spiral about z, radians.

    Raises:
        ValueError: if ``count`` is below 1 or the band is empty.
    """
    if count < 1 or not -math.pi / 2 <= min_elevation < max_elevation <= math.pi / 2:
        msg = (
            "A view sphere needs count >= 1 and -pi/2 <= min_elevation < max_elevation <= pi/2, "
            f"got {count}, {min_elevation} and {max_elevation}."
        )
        raise ValueError(msg)
    index = torch.arange(count, dtype=torch.float64)
    low, high = math.sin(min_elevation), math.sin(max_elevation)
    elevation = torch.asin(high - (high - low) * (index + 0.5) / count)
    return _sphere_poses(elevation, index * _GOLDEN_ANGLE + azimuth_offset, radius).float()


def _sphere_poses(elevation: Tensor, azimuth: Tensor, radius: float) -> Tensor:
    """Return poses without roll. Their x axis follows from the azimuth, so the poles need no special case."""
    sin, cos = azimuth.sin(), azimuth.cos()
    outwards = torch.stack([elevation.cos() * cos, elevation.cos() * sin, elevation.sin()], -1)
    right = torch.stack([-sin, cos, torch.zeros_like(sin)], -1)
    forward = -outwards
    down = torch.linalg.cross(forward, right)
    top = torch.stack([right, down, forward, radius * outwards], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)
