# SPDX-License-Identifier: Apache-2.0
"""Comparison of a rasterizer with the definition in ``splat_definition``, on any device."""

from dataclasses import replace

import torch

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.geometry.se3 import se3_exp
from anomalib_pose.render.types import Gaussians

from .splat_definition import define, make_camera, make_gaussians

NAMES = ("means", "quats", "scales", "opacities", "colors")


def _concatenate(*parts):
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in NAMES}
    return Gaussians(**tensors, sh_degree=parts[0].sh_degree)


def _translate(gaussians, offset):
    return replace(gaussians, means=gaussians.means + torch.tensor(offset, dtype=torch.float64))


def scenes():
    """Generate names, Gaussians and cameras that together reach all branches of the image formation."""
    plain, camera = make_gaussians(40), make_camera()
    yield "plain", plain, camera
    for degree in range(4):
        yield f"sh{degree}", make_gaussians(25, degree, sh_degree=degree), make_camera((1.0 + degree, 2.0, 1.5))
    yield "more coefficients than the degree", replace(make_gaussians(10, 5, sh_degree=3), sh_degree=1), camera
    yield "odd size, off-center principal point", plain, make_camera(width=37, height=21, offset=(0.2, -0.15))
    yield "one pixel", plain, make_camera(width=1, height=1, focal=3.0)
    yield "one row", plain, make_camera(width=50, height=1)
    yield "off-screen", _concatenate(plain, _translate(plain, (2.5, 0, 0)), _translate(plain, (0, 40.0, 0))), camera
    yield "behind and around the camera", make_gaussians(60, 1, size=0.2), make_camera((0.1, 0.2, -0.3))
    yield (
        "wide angle, beyond the clamped slope",
        make_gaussians(60, 2, size=0.3),
        make_camera((0.0, 0.1, -0.9), focal=0.3),
    )
    yield "huge", make_gaussians(12, 3, size=30.0), camera
    yield "needles", _needles(), camera
    yield "tiny", make_gaussians(60, 4, size=1e-4), camera
    yield "opaque", make_gaussians(80, 5, size=0.25, opacity=(0.97, 1.0)), camera
    yield "transparent", make_gaussians(40, 6, opacity=(0.0, 0.02)), camera


def _needles():
    gaussians = make_gaussians(20, 7)
    return replace(gaussians, scales=gaussians.scales * torch.tensor([30.0, 0.02, 1.0], dtype=torch.float64))


SCENES = {name: (gaussians, camera) for name, gaussians, camera in scenes()}


def _leaves(gaussians, device):
    tensors = {name: getattr(gaussians, name).to(device).requires_grad_() for name in NAMES}
    tangent = torch.zeros(6, dtype=torch.float64, device=device, requires_grad=True)
    background = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, device=device, requires_grad=True)
    return {**tensors, "tangent": tangent, "background": background}


def _move_camera(camera, tangent):
    camera = camera.to(tangent.device)
    return camera.with_pose(camera.camera_to_world @ se3_exp(tangent))


def check(rasterizer, gaussians, camera, device="cpu", tolerance=2e-4):
    """Check images and all gradients against the definition, on pixels with no value close to a threshold."""
    exact, leaves = _leaves(gaussians, "cpu"), _leaves(gaussians, device)
    exact_gaussians = Gaussians(**{name: exact[name] for name in NAMES}, sh_degree=gaussians.sh_degree)
    *expected, unambiguous = define(exact_gaussians, _move_camera(camera, exact["tangent"]), exact["background"])
    assert unambiguous.double().mean() > 0.7 or camera.width * camera.height == 1
    tested_gaussians = Gaussians(**{name: leaves[name] for name in NAMES}, sh_degree=gaussians.sh_degree)
    output = rasterizer(tested_gaussians, _move_camera(camera, leaves["tangent"]), leaves["background"])
    generator = torch.Generator().manual_seed(0)
    loss, loss_expected = 0.0, 0.0
    for name, truth in zip(("rgb", "depth", "alpha"), expected, strict=True):
        image = getattr(output, name)
        mask = unambiguous[..., None] if name == "rgb" else unambiguous
        error = ((image.cpu() - truth) * mask).abs() / (1 + truth.abs())
        assert error.max() < tolerance, f"{name} is off by {error.max():.1e}"
        weights = torch.randn(truth.shape, generator=generator, dtype=torch.float64) * mask
        if name == "depth":  # the quotient of two small sums is ill-conditioned at low alpha
            weights = weights * (expected[2] > 0.01)
        loss_expected = loss_expected + (weights * truth).sum()
        loss = loss + (weights.to(device) * image).sum()
    loss_expected.backward()
    loss.backward()
    for name, leaf in exact.items():
        truth, gradient = leaf.grad, leaves[name].grad.cpu()
        error = (gradient - truth).norm() / truth.norm().clamp_min(1e-3)
        assert error < 5 * tolerance, f"the gradient of {name} is off by {error:.1e} (norm {truth.norm():.1e})"


__all__ = ["SCENES", "Camera", "check", "define", "make_camera", "make_gaussians"]
