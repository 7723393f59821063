# SPDX-License-Identifier: Apache-2.0
"""Fewer Gaussians where fewer do: what is hardly seen is left out."""

import torch

from anomalib_pose.geometry import Camera
from anomalib_pose.render.contributions import gaussian_contributions
from anomalib_pose.scene.gaussian_scene import GaussianScene, scene_rasterizer
from anomalib_pose.scene.protocol import Scene

_UNSEEN = (0.07, 0.015)  # share of what views show that is left out: 44 and 52 dB beside images of all
_LONGEST_SIDE = 100
_MOST_VIEWS = 30


def sort_by_contribution(scene: Scene, cameras: Camera) -> None:
    """Bring the Gaussians that views show most to the front, and note how many do for images of a size.

    Other scenes are left as they are.

    Args:
        scene: fitted, changed in place; its images stay the same.
        cameras: C cameras, of which some that are spread over them are looked through.
    """
    if not isinstance(scene, GaussianScene) or not len(scene):
        return
    views = cameras.batched()
    chosen = torch.linspace(0, len(views) - 1, min(len(views), _MOST_VIEWS)).round().long().tolist()
    shrink = min(1.0, _LONGEST_SIDE / max(cameras.height, cameras.width))
    size = (max(1, round(cameras.width * shrink)), max(1, round(cameras.height * shrink)))
    small, gaussians = views.resized(*size), scene.activated()
    rasterizer = scene_rasterizer(scene.rasterizer_name, scene.means.device)
    weights = torch.stack([gaussian_contributions(gaussians, rasterizer, small[index]) for index in chosen]).sum(0)
    order = weights.argsort(descending=True, stable=True)
    held = weights[order].double().cumsum(0)
    scene.set_raw({name: tensor[order] for name, tensor in scene.raw.items()})
    scene.counts = torch.stack([(held < (1 - unseen) * held[-1]).sum() + 1 for unseen in _UNSEEN])


def reduced_scene(scene: Scene, *, small: bool) -> Scene:
    """The scene with as few Gaussians as do for images of a size; as it is where that is not known.

    Args:
        scene: fitted.
        small: whether images are a quarter as large as the training views, or smaller.
    """
    if not isinstance(scene, GaussianScene):
        return scene
    count = int(scene.counts[0 if small else 1])
    return scene.first(count) if count else scene
