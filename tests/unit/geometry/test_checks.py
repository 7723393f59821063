# SPDX-License-Identifier: Apache-2.0
"""Cameras with numbers that cannot be right are refused before anything is computed."""

import math

import pytest
import torch

from anomalib_pose.geometry.checks import check_distortion, check_intrinsics, check_pose


def matrix(fx: float = 100, fy: float = 100, cx: float = 50, cy: float = 40) -> torch.Tensor:
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


@pytest.mark.parametrize("K", [matrix(), matrix(12000, 12000), matrix(30, 30), matrix(cx=-40, cy=140)])
def test_plausible_intrinsics_pass(K):
    check_intrinsics(K, 100, 80, "a.png")
    check_intrinsics(K.float(), 100, 80, "a.png")


@pytest.mark.parametrize(
    ("K", "message"),
    [
        (matrix(fx=math.nan), "finite"),
        (matrix(cy=math.inf), "finite"),
        (matrix(fx=-100), "above 0"),
        (matrix(fy=0), "above 0"),
        (matrix(1.2, 1.2, 0.5, 0.5), "do not fit an image of 100 x 80"),
        (matrix(4.2, 4.2), "do not fit"),
        (matrix(fx=1e6), "do not fit"),
        (matrix(cx=5000), "do not fit"),
        (matrix().T, r"should be \[\[fx"),
        (torch.eye(4), r"should be \(3, 3\)"),
    ],
)
def test_implausible_intrinsics_are_refused(K, message):
    with pytest.raises(ValueError, match=rf"a\.png: .*{message}"):
        check_intrinsics(K, 100, 80, "a.png")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e31])
def test_poses_and_lenses_that_are_not_finite_are_refused(value):
    pose = torch.eye(4, dtype=torch.float64)
    check_pose(pose, "a.png")
    pose[1, 3] = value
    with pytest.raises(ValueError, match=r"a\.png: the pose should consist of finite"):
        check_pose(pose, "a.png")
    with pytest.raises(ValueError, match="coefficients"):
        check_distortion((0.1, value, 0.0, 0.0, 0.0), "a.png")


@pytest.mark.parametrize("scale", [2.0, -1.0, 0.0])
def test_poses_that_are_not_rigid_are_refused(scale):
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 0] = scale
    with pytest.raises(ValueError, match="not a rigid motion"):
        check_pose(pose, "a.png")
