# SPDX-License-Identifier: Apache-2.0
"""All pixels of posed images as rays, for fits that draw rays at random."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera
from anomalib_pose.render.volume import Rays, camera_rays
from anomalib_pose.scene.training_views import make_training_views

_MARGIN = 16  # pixels so far from the object, as a part of the image's side, tell nothing that nearer ones do not


@dataclass(frozen=True)
class TrainingPixels:
    """Pixels of posed images.

    Args:
        origins: of the views (C, 3), world frame.
        view: number of each pixel's view (N,).
        directions: through the pixels' centers (N, 3), of length 1, world frame.
        colors: RGB (N, 3), over white where masks are known.
        covered: 1 on the object (N,), or None if masks are unknown.
        band: 1 where a pixel may be partly covered (N,), or None.
    """

    origins: Float[Tensor, "c 3"]
    view: Int[Tensor, " n"]
    directions: Float[Tensor, "n 3"]
    colors: Float[Tensor, "n 3"]
    covered: Float[Tensor, " n"] | None
    band: Float[Tensor, " n"] | None

    @classmethod
    def of(cls, images: Tensor, cameras: Camera, foreground: Tensor | None) -> "TrainingPixels":
        """Pixels on and near the object, or all where masks are unknown.

        Args:
            images: RGB (C, 3, H, W) in [0, 1].
            cameras: C of them.
            foreground: masks (C, H, W), or None.
        """
        margin = max(images.shape[-2:]) // _MARGIN
        parts = []
        for index, view in enumerate(make_training_views(images, cameras, foreground)):
            near = torch.arange(view.image[..., 0].numel(), device=images.device)
            covered = band = view.image[..., 0].flatten()[:0]
            if view.foreground is not None and view.band is not None:
                across = F.max_pool2d(view.foreground[None], (1, 2 * margin + 1), 1, (0, margin))
                grown = F.max_pool2d(across, (2 * margin + 1, 1), 1, (margin, 0))
                near = grown.flatten().nonzero()[:, 0]
                covered, band = view.foreground.flatten()[near], view.band.flatten()[near]
            directions = camera_rays(view.camera).directions[near]
            number = torch.full_like(directions[:, 0], index, dtype=torch.long)
            parts.append((number, directions, view.image.reshape(-1, 3)[near], covered, band))
        number, directions, colors, covered, band = (torch.cat(part) for part in zip(*parts, strict=True))
        masks = (None, None) if foreground is None else (covered, band)
        return cls(cameras.center, number, directions, colors, *masks)

    def __len__(self) -> int:
        """Number of pixels."""
        return len(self.view)

    def rays(self, index: Int[Tensor, " m"]) -> Rays:
        """Rays through some pixels; cosines are not known here and said to be 1."""
        directions = self.directions[index]
        return Rays(self.origins[self.view[index]], directions, torch.ones_like(directions[:, 0]))

    def target(
        self, index: Int[Tensor, " m"], background: Float[Tensor, "3"], alpha: Float[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m 3"], Float[Tensor, " m"]]:
        """Colors of some pixels over another background than white, and where there should be nothing.

        Where a pixel may be partly covered the rendering's own alpha is taken, see ``View.target``.

        Args:
            index: the pixels.
            background: color.
            alpha: of the rendering.
        """
        colors = self.colors[index]
        if self.covered is None or self.band is None:
            return colors, torch.zeros_like(alpha)
        covered, band = self.covered[index], self.band[index]
        mixed = torch.where(band > 0, alpha.detach(), covered)
        return colors + (1 - mixed)[:, None] * (background - 1), (1 - covered) * (1 - band)
