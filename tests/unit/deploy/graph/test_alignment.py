# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from anomalib_pose.deploy import FeedForwardDetector
from anomalib_pose.deploy.graph.alignment import (
    ROBUST_SCALE,
    align,
    build_level,
    linearize,
    project,
    retract,
    unproject,
)
from anomalib_pose.deploy.graph.resample import sample
from anomalib_pose.geometry import so3_exp
from anomalib_pose.pose import surface_alignment
from anomalib_pose.pose.pyramid import central_differences
from anomalib_pose.pose.surface_alignment import rendered_surface
from sample_detector import POSES, make_detector, photograph


@pytest.fixture(scope="module")
def detector() -> FeedForwardDetector:
    return make_detector(drawn=False)


def test_retraction_rotates_exactly():
    tangent = 0.25 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    moved = retract(tangent)
    torch.testing.assert_close(moved[:, :3, :3], so3_exp(tangent[:, 3:]), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved[:, :3, 3], tangent[:, :3])


def test_alignment_lowers_the_cost_of_a_wrong_initial_view(detector):
    bank = detector.bank
    query = detector.crop(photograph(POSES[5])[None])
    index = bank.nearest(query, 3)[:, 1]
    level = build_level(query, bank.view(index), bank.pinhole(index), torch.eye(4)[None], 2, silhouettes_only=False)
    costs = [float(align(level, torch.eye(4)[None], steps)[1]) for steps in (0, 2, 8)]
    assert costs[0] > costs[1] >= costs[2]


def test_jacobian_is_the_derivative_of_the_residual(detector):
    bank, index = detector.bank, torch.tensor([10])
    view, pinhole, identity = bank.view(index), bank.pinhole(index), torch.eye(4)[None]
    smooth = view._replace(rgb=torch.nn.functional.avg_pool2d(view.rgb, 9, 1, 4, count_include_pad=False))
    level = build_level(smooth.rgb, smooth, pinhole, identity, 1, silhouettes_only=False)
    for axis in range(6):
        tangent = 4e-3 * torch.eye(6)[axis][None]
        images = [
            sample(level.query, project(retract(sign * tangent), level.points, pinhole)[1][:, :, None])
            for sign in (1, -1)
        ]
        change = ((images[0] - images[1]) / 8e-3).flatten()
        slope = level.jacobian[0, axis]
        assert (change - slope).norm() < 0.05 * slope.norm()
    products = torch.einsum("ian,ibn->iab", *2 * [level.jacobian.unflatten(2, (3, -1)).transpose(1, 2).flatten(0, 1)])
    torch.testing.assert_close(level.products.sum(2).view(6, 6), products.sum(0), rtol=1e-3, atol=1e-3)


def test_projection_of_the_identity_is_the_pixel_itself():
    depth, pinhole = 1 + torch.rand(2, 5, 7), torch.tensor([[9.0, 8, 3, 2]]).expand(2, 4)
    _, uv = project(torch.eye(4).expand(2, 4, 4), unproject(depth, pinhole).flatten(2), pinhole)
    torch.testing.assert_close(uv.unflatten(2, (5, 7))[0, :, 2, 3], torch.tensor([3.5, 2.5]))


def test_normal_equations_agree_with_the_twins(detector):
    bank, index, identity = detector.bank, torch.tensor([10]), torch.eye(4)
    view, pinhole = bank.view(index), bank.pinhole(index)
    query = detector.crop(photograph(POSES[5])[None])
    actual = linearize(build_level(query, view, pinhole, identity[None], 1, silhouettes_only=False), identity[None])

    def charbonnier_of_pixels(residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        root = (1 + residual.square().sum(0, keepdim=True) / ROBUST_SCALE**2).sqrt().expand_as(residual)
        return root - 1, 1 / root

    fx, fy, cx, cy = pinhole[0].tolist()
    intrinsics = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    surface = rendered_surface(view.rgb[0], view.depth[0], torch.ones_like(view.alpha[0]), intrinsics)
    image = torch.cat([query[0], *central_differences(query[0])])
    expected = surface_alignment.linearize(surface, image, intrinsics, identity, charbonnier_of_pixels)
    pixels = view.alpha[0].numel()
    assert float(actual.cost) == pytest.approx(expected.cost, rel=1e-4)
    hessian, gradient = expected.hessian / pixels, expected.gradient / pixels
    torch.testing.assert_close(actual.hessian[0].double(), hessian, rtol=1e-3, atol=1e-3 * float(hessian.abs().max()))
    torch.testing.assert_close(
        actual.gradient[0].double(), gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max())
    )
