# SPDX-License-Identifier: Apache-2.0
"""Exponential and logarithm of rotations and rigid motions.

Convention:
    A tangent is ``(v, omega)``: translation first, rotation second, in radians. ``se3_exp(tangent) @ p`` moves the
    point ``p``. All functions accept any number of leading batch dimensions and keep dtype and device.

Each coefficient has a Taylor series near zero. The argument of the closed form is replaced *before* ``torch.where``, so
that the gradient of the unused branch stays finite.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Largest squared angle of the Taylor series. Below, the series' truncation error is smaller than float64 round-off.
# Above, the closed forms lose no significant digits to cancellation.
_SMALL = 0.25
_INVERSES = tuple(tuple(1 / ((2 * k + first) * (2 * k + first - 1)) for first in (1, 2, 3)) for k in range(8, 0, -1))
_FACTORIALS = (1.0, 0.5, 1 / 6)


def _series(squared_angle: Tensor) -> Tensor:
    """Return the sums of ``(-x)^k / (2k + f)!`` for f = 1, 2, 3 along a new last axis, by Horner's rule."""
    factors = (squared_angle[..., None, None] * squared_angle.new_tensor(_INVERSES)).unbind(-2)
    result = 1 - factors[0]
    for factor in factors[1:]:
        result = 1 - factor * result
    return result * squared_angle.new_tensor(_FACTORIALS)


def _coefficients(squared_angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``sin t / t``, ``(1 - cos t) / t^2`` and ``(t - sin t) / t^3`` for ``t^2``."""
    small = squared_angle < _SMALL
    near = torch.where(small, squared_angle, torch.zeros_like(squared_angle))
    far = torch.where(small, torch.ones_like(squared_angle), squared_angle)
    angle = far.sqrt()
    sine = angle.sin()
    closed = torch.stack([sine / angle, 2 * (angle / 2).sin() ** 2 / far, (angle - sine) / (far * angle)], -1)
    a, b, c = torch.where(small[..., None], _series(near), closed).unbind(-1)
    return a, b, c


def skew(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the matrix of the cross product, with ``skew(a) @ b = a x b``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def so3_exp(omega: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotation matrix of a rotation vector (Rodrigues).

    Args:
        omega: axis times angle, radians.
    """
    a, b, _ = _coefficients((omega * omega).sum(-1))
    w = skew(omega)
    eye = torch.eye(3, dtype=omega.dtype, device=omega.device)
    return eye + a[..., None, None] * w + b[..., None, None] * (w @ w)


def _quaternion(rotation: Tensor) -> Tensor:
    """Return the unit quaternion (w, x, y, z) with w >= 0, from the best conditioned of the four pivots."""
    diagonal = rotation.diagonal(dim1=-2, dim2=-1)
    trace = diagonal.sum(-1, keepdim=True)
    squares = torch.cat([1 + trace, 1 - trace + 2 * diagonal], -1)
    pivot = squares.argmax(-1)
    # Row i of the symmetric matrix 4 q q^T is a multiple of q. The row of the largest diagonal entry is the most exact.
    difference = rotation - rotation.transpose(-1, -2)
    axis = torch.stack([difference[..., 2, 1], difference[..., 0, 2], difference[..., 1, 0]], -1)
    products = rotation + rotation.transpose(-1, -2)
    products = products - torch.diag_embed(products.diagonal(dim1=-2, dim2=-1)) + torch.diag_embed(squares[..., 1:])
    first = torch.cat([squares[..., None, :1], axis[..., None, :]], -1)
    q = torch.cat([first, torch.cat([axis[..., :, None], products], -1)], -2)
    index = pivot[..., None, None].expand(*pivot.shape, 1, 4)
    q = q.gather(-2, index).squeeze(-2)
    q = q / q.norm(dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)


def so3_log(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """Return the rotation vector of a rotation matrix, with an angle in [0, pi].

    Args:
        rotation: rotation matrices; the function does not check them.
    """
    q = _quaternion(rotation)
    w, xyz = q[..., 0], q[..., 1:]
    squared = (xyz * xyz).sum(-1)
    small = squared < 1e-8
    safe = torch.where(small, torch.ones_like(squared), squared)
    norm = safe.sqrt()
    far = 2 * torch.atan2(norm, w) / norm
    # asin(s) / s = 1 + s^2 / 6 + 3 s^4 / 40, which is exact to round-off for s^2 below 1e-8.
    near = 2 * (1 + squared / 6 + 3 * squared * squared / 40)
    return torch.where(small, near, far)[..., None] * xyz


def se3_exp(tangent: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 4 4"]:
    """Return the rigid motion of a tangent ``(v, omega)``: the matrix exponential of ``[[skew(omega), v], [0, 0]]``.

    Args:
        tangent: translation part in scene units, rotation part in radians.
    """
    v, omega = tangent[..., :3], tangent[..., 3:]
    a, b, c = _coefficients((omega * omega).sum(-1))
    w = skew(omega)
    w2 = w @ w
    eye = torch.eye(3, dtype=tangent.dtype, device=tangent.device)
    rotation = eye + a[..., None, None] * w + b[..., None, None] * w2
    jacobian = eye + b[..., None, None] * w + c[..., None, None] * w2
    top = torch.cat([rotation, jacobian @ v[..., None]], -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1
    return torch.cat([top, bottom], -2)


def se3_log(transform: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 6"]:
    """Return the tangent ``(v, omega)`` with ``se3_exp(tangent) = transform`` and ``|omega| <= pi``.

    Args:
        transform: rigid motions; the function does not check them.
    """
    omega = so3_log(transform[..., :3, :3])
    squared = (omega * omega).sum(-1)
    a, b, _ = _coefficients(squared)
    small = squared < _SMALL
    safe = torch.where(small, torch.ones_like(squared), squared)
    # The factor is (1 - a / 2b) / t^2; its series is sum |B_2n| t^(2n-2) / (2n)!.
    near_squared = torch.where(small, squared, torch.zeros_like(squared))
    near = _bernoulli(near_squared)
    factor = torch.where(small, near, (1 - a / (2 * b)) / safe)
    w = skew(omega)
    eye = torch.eye(3, dtype=transform.dtype, device=transform.device)
    inverse_jacobian = eye - w / 2 + factor[..., None, None] * (w @ w)
    v = (inverse_jacobian @ transform[..., :3, 3:])[..., 0]
    return torch.cat([v, omega], -1)


def _bernoulli(squared: Tensor) -> Tensor:
    """Return ``sum_n |B_2n| / (2n)! x^(n-1)`` = 1/12 + x/720 + x^2/30240 + ..."""
    numbers = (
        1 / 12,
        1 / 720,
        1 / 30240,
        1 / 1209600,
        1 / 47900160,
        691 / 1307674368000,
        1 / 74724249600,
        3617 / 10670622842880000,
        43867 / 5109094217170944000,
    )
    result = torch.zeros_like(squared)
    for number in reversed(numbers):
        result = result * squared + number
    return result


def rigid_inverse(transform: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Invert a rigid motion by transposition, which is exact where a general inverse loses digits."""
    rotation = transform[..., :3, :3].transpose(-1, -2)
    translation = -rotation @ transform[..., :3, 3:]
    return torch.cat([torch.cat([rotation, translation], -1), transform[..., 3:, :]], -2)


def rotation_angle(first: Float[Tensor, "*batch 3 3"], second: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Return the angle in radians, in [0, pi], of the relative rotation of two rotation matrices."""
    return so3_log(first.transpose(-1, -2) @ second).norm(dim=-1)
