# SPDX-License-Identifier: Apache-2.0
"""Properties of the exponential and the logarithm, on both sides of the switch between series and closed form."""

import math

import pytest
import torch

from anomalib_pose.geometry import rigid_inverse, rotation_angle, se3_exp, se3_log, skew, so3_exp, so3_log

# Angles around the switch at 0.5, towards zero, and close to pi.
ANGLES = [0.0, 1e-12, 1e-7, 1e-4, 1e-2, 0.3, 0.499999, 0.5, 0.500001, 1.0, 2.0, 3.0, 3.14]


def tangents(angle: float, count: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=-1)
    return torch.cat([torch.randn(count, 3, generator=generator, dtype=torch.float64), axis * angle], -1)


@pytest.mark.parametrize("angle", ANGLES)
def test_exp_is_the_matrix_exponential(angle: float) -> None:
    tangent = tangents(angle)
    algebra = torch.zeros(len(tangent), 4, 4, dtype=torch.float64)
    algebra[:, :3, :3] = skew(tangent[:, 3:])
    algebra[:, :3, 3] = tangent[:, :3]
    torch.testing.assert_close(se3_exp(tangent), torch.matrix_exp(algebra), rtol=0, atol=4e-15)
    torch.testing.assert_close(so3_exp(tangent[:, 3:]), se3_exp(tangent)[:, :3, :3], rtol=0, atol=1e-16)


@pytest.mark.parametrize("angle", ANGLES)
def test_log_inverts_exp(angle: float) -> None:
    tangent = tangents(angle)
    # Near pi the inverse of the left Jacobian is large, and with it the propagated round-off.
    torch.testing.assert_close(se3_log(se3_exp(tangent)), tangent, rtol=0, atol=1e-14)
    torch.testing.assert_close(so3_log(so3_exp(tangent[:, 3:])), tangent[:, 3:], rtol=0, atol=3e-15)


def test_log_of_half_turns() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    half_turns = 2 * axes[:, :, None] * axes[:, None, :] - torch.eye(3, dtype=torch.float64)
    omega = so3_log(half_turns)
    torch.testing.assert_close(omega.abs(), math.pi * axes)
    torch.testing.assert_close(so3_exp(omega), half_turns, rtol=0, atol=1e-15)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, 0.499999, 0.500001, 2.5])
def test_gradients_equal_finite_differences(angle: float) -> None:
    tangent = tangents(angle, count=2).requires_grad_()
    assert torch.autograd.gradcheck(se3_exp, tangent)
    assert torch.autograd.gradcheck(lambda t: se3_log(se3_exp(t)), tangent)


def test_second_order_gradient_at_zero_is_finite() -> None:
    tangent = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(se3_exp, tangent)


def test_inverse_and_angle_equal_the_general_formulas() -> None:
    first, second = se3_exp(tangents(1.0)), se3_exp(tangents(1.7))
    torch.testing.assert_close(rigid_inverse(first), torch.linalg.inv(first))
    rotated = first[:, :3, :3] @ so3_exp(tangents(0.25)[:, 3:])
    expected = torch.full((8,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(rotation_angle(first[:, :3, :3], rotated), expected)
    cosine = ((first[:, :3, :3].transpose(1, 2) @ second[:, :3, :3]).diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
    torch.testing.assert_close(rotation_angle(first[:, :3, :3], second[:, :3, :3]), cosine.acos())


def test_float32_stays_accurate_near_zero() -> None:
    tangent = tangents(1e-4)
    error = (se3_exp(tangent.float()).double() - se3_exp(tangent)).abs().max()
    assert error < 3e-7


def test_wrong_shape_raises() -> None:
    with pytest.raises(Exception, match="Type-check"):
        se3_exp(torch.zeros(5))
