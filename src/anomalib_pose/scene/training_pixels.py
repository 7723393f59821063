# SPDX-License-Identifier: Apache-2.0
"""Training pixels: the pixels of posed images as rays, for fits on random rays."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera
from anomalib_pose.render.volume import Rays, camera_rays
from anomalib_pose.scene.training_views import make_training_views

_MARGIN_DIVISOR = 16  # divisor of the image's side; pixels farther from the object add no information


@dataclass(frozen=True)
class TrainingPixels:
    """N pixels of C posed images.

    Args:
        origins: optical centers of the views (C, 3), world frame.
        view: index of each pixel's view (N,).
        directions: ray directions through the pixel centers (N, 3), of length 1, world frame.
        colors: RGB (N, 3), over white if masks are known.
        covered: 1 on the object (N,), or None if masks are unknown.
        band: 1 where the coverage of a pixel is unknown (N,), or None.
    """

    origins: Float[Tensor, "c 3"]
    view: Int[Tensor, " n"]
    directions: Float[Tensor, "n 3"]
    colors: Float[Tensor, "n 3"]
    covered: Float[Tensor, " n"] | None
    band: Float[Tensor, " n"] | None

    @classmethod
    def from_views(cls, images: Tensor, cameras: Camera, foreground: Tensor | None) -> "TrainingPixels":
        """Collect the pixels on and near the object, or all pixels if masks are unknown.

        Args:
            images: RGB (C, 3, H, W) in [0, 1].
            cameras: C cameras of the images.
            foreground: masks (C, H, W), or None.
        """
        margin = max(images.shape[-2:]) // _MARGIN_DIVISOR
        parts = []
        for index, view in enumerate(make_training_views(images, cameras, foreground)):
            near = torch.arange(view.image[..., 0].numel(), device=images.device)
            covered = band = view.image[..., 0].flatten()[:0]
            if view.foreground is not None and view.band is not None:
                row_max = F.max_pool2d(view.foreground[None], (1, 2 * margin + 1), 1, (0, margin))
                dilated = F.max_pool2d(row_max, (2 * margin + 1, 1), 1, (margin, 0))
                near = dilated.flatten().nonzero()[:, 0]
                covered, band = view.foreground.flatten()[near], view.band.flatten()[near]
            directions = camera_rays(view.camera).directions[near]
            view_index = torch.full_like(directions[:, 0], index, dtype=torch.long)
            parts.append((view_index, directions, view.image.reshape(-1, 3)[near], covered, band))
        view_index, directions, colors, covered, band = (torch.cat(part) for part in zip(*parts, strict=True))
        masks = (None, None) if foreground is None else (covered, band)
        return cls(cameras.center, view_index, directions, colors, *masks)

    def __len__(self) -> int:
        """Number of pixels."""
        return len(self.view)

    def rays(self, index: Int[Tensor, " m"]) -> Rays:
        """Return the rays through pixels. Their cosines are unknown here and set to 1."""
        directions = self.directions[index]
        return Rays(self.origins[self.view[index]], directions, torch.ones_like(directions[:, 0]))

    def target(
        self, index: Int[Tensor, " m"], background: Float[Tensor, "3"], alpha: Float[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m 3"], Float[Tensor, " m"]]:
        """Return target colors of pixels over a background color, and 1 for each pixel that should be empty, else 0.

        In the ``band`` the target uses the rendering's own alpha; see ``TrainingView.target``.

        Args:
            index: indices of M pixels.
            background: color.
            alpha: opacity of the rendering.
        """
        colors = self.colors[index]
        if self.covered is None or self.band is None:
            return colors, torch.zeros_like(alpha)
        covered, band = self.covered[index], self.band[index]
        coverage = torch.where(band > 0, alpha.detach(), covered)
        return colors + (1 - coverage)[:, None] * (background - 1), (1 - covered) * (1 - band)
