# SPDX-License-Identifier: Apache-2.0
"""Small Gaussian scenes for tests."""

import torch

from anomalib_pose.geometry import Camera, look_at
from anomalib_pose.scene import GaussianScene

CAMERA = Camera.from_fov(
    look_at(torch.tensor([0.0, -3.0, 0.5]), torch.zeros(3), torch.tensor([0.0, 0, 1])), 0.7, 32, 24
)


def make_scene(count: int = 40, sh_degree: int = 1, seed: int = 0) -> GaussianScene:
    """Make a cloud of random Gaussians."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    scene = GaussianScene(sh_degree, "cpu")
    scene.set_raw(
        {
            "means": 0.3 * normal(count, 3),
            "quats": normal(count, 4),
            "log_scales": -2.5 + 0.3 * normal(count, 3),
            "logit_opacities": 1 + normal(count),
            "sh": 0.5 * normal(count, (sh_degree + 1) ** 2, 3),
        }
    )
    return scene


def with_reflectance(scene: GaussianScene, seed: int = 3) -> GaussianScene:
    """Add random reflectances to the Gaussians of a scene."""
    noise = torch.randn(scene.sh.shape, generator=torch.Generator().manual_seed(seed))
    reflective = GaussianScene(scene.sh_degree, "cpu")
    reflective.set_raw(scene.raw | {"sh": torch.cat([scene.sh, 0.5 * noise], 2)})
    return reflective


def make_toy(count: int = 1500) -> GaussianScene:
    """Make an opaque, asymmetric body with patches of color, so that its pose is unambiguous."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    bumps = 1 + 0.35 * torch.sin(3 * direction[:, :1] + 1) * torch.cos(2 * direction[:, 1:2]) + 0.3 * direction[:, 2:]
    phases = torch.tensor([[4.0, 1.0, 2.0], [1.0, 5.0, 3.0], [2.0, 3.0, 6.0]])
    colors = 0.5 + 0.35 * torch.sin(direction @ phases + torch.tensor([0.3, 1.1, 2.0]))
    scene = GaussianScene(0, "cpu")
    scene.set_raw(
        {
            "means": 0.55 * bumps * direction * torch.tensor([1.0, 0.7, 0.8]),
            "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
            "log_scales": torch.full((count, 3), -3.2),
            "logit_opacities": torch.full((count,), 3.0),
            "sh": ((colors - 0.5) / 0.28209479)[:, None],
        }
    )
    return scene


def make_ring(count: int = 1500) -> GaussianScene:
    """Make a dark ring in the plane z = 0; the background is visible through its hole."""
    generator = torch.Generator().manual_seed(6)
    around, across = (2 * torch.pi * torch.rand(count, generator=generator) for _ in range(2))
    radius = 0.65 + 0.16 * across.cos()
    means = torch.stack([radius * around.cos(), radius * around.sin(), 0.16 * across.sin()], 1)
    scene = GaussianScene(0, "cpu")
    scene.set_raw(
        {
            "means": means,
            "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
            "log_scales": torch.full((count, 3), -3.2),
            "logit_opacities": torch.full((count,), 3.0),
            "sh": ((0.2 + 0.3 * torch.rand(count, 3, generator=generator) - 0.5) / 0.28209479)[:, None],
        }
    )
    return scene
