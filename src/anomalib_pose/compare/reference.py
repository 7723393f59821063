# SPDX-License-Identifier: Apache-2.0
"""What queries of scene models are compared with."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from anomalib_pose.render.reflectance import Decomposition, reflectance_of_color


class Reference(NamedTuple):
    """The defect-free object as a camera sees it, or as several do, with a leading axis then.

    Args:
        rgb: over white (3, H, W).
        alpha: opacity (H, W).
        points: of the surface (H, W, 3), world frame.
        support_residual: color difference from the nearest training views at the same surface points (H, W), as a
            part of the color range; 0 where no training view is stored.
        reflected: what it reflects (3, H, W), where the scene was fitted with that and the comparison asks for it.
    """

    rgb: Tensor
    alpha: Tensor
    points: Tensor
    support_residual: Tensor
    reflected: Tensor | None = None

    def over(self, image: Tensor, decompose: Decomposition | None) -> "Reference":
        """The same before the background of a photograph.

        Args:
            image: RGB (3, H, W) in [0, 1].
            decompose: how photographs are taken to what they reflect, where ``reflected`` is there.
        """
        behind = 1 - self.alpha
        rgb = (self.rgb - behind + behind * image).clamp(0, 1)
        if self.reflected is None or decompose is None:
            return self._replace(rgb=rgb)
        white = reflectance_of_color(torch.ones(3).to(image), decompose)[:, None, None]
        reflected = self.reflected + behind * (decompose(image[None])[0] - white)
        return self._replace(rgb=rgb, reflected=reflected.clamp(0, 1))


def stacked(references: Iterable[Reference]) -> Reference:
    """References of several cameras as one, with a leading axis."""
    every = list(references)
    rgb, alpha, points, support_residual = map(torch.stack, zip(*(reference[:4] for reference in every), strict=True))
    reflected = [reference.reflected for reference in every if reference.reflected is not None]
    return Reference(rgb, alpha, points, support_residual, torch.stack(reflected) if reflected else None)
