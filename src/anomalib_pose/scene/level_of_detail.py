# SPDX-License-Identifier: Apache-2.0
"""Level of detail: scenes without the Gaussians that contribute little to images of a given size."""

import torch

from anomalib_pose.geometry import Camera
from anomalib_pose.render.contributions import gaussian_contributions
from anomalib_pose.scene.gaussian_scene import GaussianScene, scene_rasterizer
from anomalib_pose.scene.protocol import Scene

# Fraction of the total contribution that reduced scenes omit, for small and for larger images. The PSNR between the
# reduced and the whole scene is 44 and 52 dB.
_OMITTED_FRACTIONS = (0.07, 0.015)
_LONGEST_SIDE = 100
_MAX_VIEWS = 30


def sort_by_contribution(scene: Scene, cameras: Camera) -> None:
    """Sort Gaussians by their contribution to views, the largest first, and store the counts of reduced scenes.

    Scenes that are not made of Gaussians stay unchanged.

    Args:
        scene: fitted object, changed in place; its images stay the same.
        cameras: C cameras; at most 30 of them, evenly spread, take part.
    """
    if not isinstance(scene, GaussianScene) or not len(scene):
        return
    views = cameras.batched()
    indices = torch.linspace(0, len(views) - 1, min(len(views), _MAX_VIEWS)).round().long().tolist()
    scale = min(1.0, _LONGEST_SIDE / max(cameras.height, cameras.width))
    size = (max(1, round(cameras.width * scale)), max(1, round(cameras.height * scale)))
    small_views, gaussians = views.resized(*size), scene.activated()
    rasterizer = scene_rasterizer(scene.rasterizer_name, scene.means.device)
    contributions = torch.stack(
        [gaussian_contributions(gaussians, rasterizer, small_views[index]) for index in indices]
    ).sum(0)
    order = contributions.argsort(descending=True, stable=True)
    cumulative = contributions[order].double().cumsum(0)
    scene.set_raw({name: tensor[order] for name, tensor in scene.raw.items()})
    scene.counts = torch.stack(
        [(cumulative < (1 - fraction) * cumulative[-1]).sum() + 1 for fraction in _OMITTED_FRACTIONS]
    )


def reduced_scene(scene: Scene, *, small: bool) -> Scene:
    """Return the scene with the Gaussians that images of a size need, or the scene itself if the count is unknown.

    Args:
        scene: fitted object, see ``sort_by_contribution``.
        small: whether the images have at most a quarter of the training views' size.
    """
    if not isinstance(scene, GaussianScene):
        return scene
    count = int(scene.counts[0 if small else 1])
    return scene.first(count) if count else scene
