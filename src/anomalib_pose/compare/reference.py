# SPDX-License-Identifier: Apache-2.0
"""Rendered references that queries are compared with."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_pose.geometry import Camera
from anomalib_pose.render.reflectance import Decomposition, reflectance_of_color
from anomalib_pose.scene import CorrectedScene, NearbyViews, Scene, is_reflective


class Reference(NamedTuple):
    """Rendering of the defect-free object from one camera, or from B cameras with a leading batch axis.

    Args:
        rgb: rendering over white (3, H, W).
        alpha: opacity of the object (H, W).
        points: surface point that each pixel shows (H, W, 3), world frame.
        support_residual: color difference from the nearest training views at the same surface points (H, W), as a
            fraction of the color range; None where no training views are stored.
        reflectance: rendered reflectance over white (3, H, W); None where the scene has none or the comparison needs
            none.
    """

    rgb: Tensor
    alpha: Tensor
    points: Tensor
    support_residual: Tensor | None = None
    reflectance: Tensor | None = None

    def over_background(self, query: Tensor, decompose: Decomposition | None) -> "Reference":
        """Replace the white background by that of the query.

        Args:
            query: RGB (3, H, W) in [0, 1].
            decompose: computes the reflectance of the query; needed only where this reference has a reflectance.
        """
        transparency = 1 - self.alpha
        rgb = (self.rgb - transparency + transparency * query).clamp(0, 1)
        if self.reflectance is None or decompose is None:
            return self._replace(rgb=rgb)
        white = reflectance_of_color(torch.ones(3).to(query), decompose)[:, None, None]
        reflectance = self.reflectance + transparency * (decompose(query[None])[0] - white)
        return self._replace(rgb=rgb, reflectance=reflectance.clamp(0, 1))


@torch.no_grad()
def render_reference(
    scene: Scene, nearby: NearbyViews | None, camera: Camera, decompose: Decomposition | None
) -> Reference:
    """Render the defect-free object over white.

    Args:
        scene: fitted object.
        nearby: training views whose residuals correct the rendering; None for no correction.
        camera: one camera.
        decompose: computes the reflectance of the white background; None to render no reflectance.
    """
    white = torch.ones(3, device=camera.K.device)
    output = (scene if nearby is None else CorrectedScene(scene, nearby)).render(camera, white)
    support_residual = (
        nearby.support_residual(output, camera) if nearby is not None and nearby.has_photographs else None
    )
    reflectance = None
    if decompose is not None and is_reflective(scene):
        background = reflectance_of_color(white, decompose)
        reflectance = scene.render_reflectance(camera, background).rgb.permute(2, 0, 1).clamp(0, 1)
    rgb = output.rgb.permute(2, 0, 1).clamp(0, 1)
    return Reference(rgb, output.alpha, camera.unproject(output.depth), support_residual, reflectance)


def stack_references(references: Iterable[Reference]) -> Reference:
    """Stack the references of several cameras along a leading batch axis.

    Args:
        references: one or more, of one size; either all or none have a support residual, likewise a reflectance.
    """
    fields = list(zip(*references, strict=True))
    rgb, alpha, points = (torch.stack(field) for field in fields[:3])
    support_residual, reflectance = (None if field[0] is None else torch.stack(field) for field in fields[3:])
    return Reference(rgb, alpha, points, support_residual, reflectance)
