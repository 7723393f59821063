# SPDX-License-Identifier: Apache-2.0
"""Initial points and Gaussians of a fit."""

import math

import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.spherical_harmonics import C0
from anomalib_pose.scene.hull import colors_of_points, visual_hull
from anomalib_pose.scene.settings import FitSettings

_NEIGHBORS = 3


def initial_points(
    images: Float[Tensor, "c 3 h w"],
    cameras: Camera,
    foreground: Float[Tensor, "c h w"] | None,
    ball: tuple[Tensor, float],
    settings: FitSettings,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """Sample N points on the visual hull with their colors, or random points in the ball's bounding cube.

    Args:
        images: RGB in [0, 1].
        cameras: C cameras of the images.
        foreground: masks, or None.
        ball: center (3,) and radius of the region that the cameras look at; see ``ball_of_cameras``.
        settings: number and placement of the points.
        generator: CPU generator.
    """
    center, radius = ball
    count = settings.initial_gaussians
    hull = None
    if settings.initial == "hull" and foreground is not None:
        hull = visual_hull(cameras, foreground, center, radius)
    if hull is None:
        cube = 2 * torch.rand(count, 3, generator=generator) - 1
        points = center + radius * cube.to(center)
        brightness = 0.02 if settings.density == "adaptive" else 0.5
        return points, torch.full_like(points, brightness)
    surface, side = hull
    voxels = torch.randint(len(surface), (count,), generator=generator).to(center.device)
    jitter = (torch.rand(count, 3, generator=generator) - 0.5).to(center)
    points = surface[voxels] + side * jitter
    return points, colors_of_points(points, cameras, images)


def gaussians_at(
    points: Float[Tensor, "n 3"],
    colors: Float[Tensor, "n channels"],
    opacity: float,
    sh_degree: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Create raw, isotropic Gaussians at points.

    Their scale is the root mean square distance to the three nearest neighbors.

    Args:
        points: centers, world frame.
        colors: RGB in [0, 1] (N, 3), or (N, 6) with the reflectance in the last three channels.
        opacity: opacity of all Gaussians.
        sh_degree: spherical harmonics degree of the colors; higher coefficients start at zero.
        generator: CPU generator of the orientations.
    """
    count = len(points)
    positions = points.detach().cpu().double().numpy()
    distances, _ = cKDTree(positions).query(positions, k=min(count, _NEIGHBORS + 1))
    distances = torch.from_numpy(distances).reshape(count, -1)[:, 1:]
    size = distances.square().mean(1).sqrt() if distances.shape[1] else torch.full((count,), 0.1)
    size = size.clamp_min(1e-7).to(points)
    sh = points.new_zeros(count, (sh_degree + 1) ** 2, colors.shape[1])
    sh[:, 0] = (colors - 0.5) / C0
    return {
        "means": points.clone(),
        "quats": torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1).to(points),
        "log_scales": size.log()[:, None].expand(-1, 3).contiguous(),
        "logit_opacities": points.new_full((count,), math.log(opacity / (1 - opacity))),
        "sh": sh,
    }
