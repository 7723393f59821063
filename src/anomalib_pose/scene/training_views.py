# SPDX-License-Identifier: Apache-2.0
"""Training views: posed images with their masks, prepared as targets of a fit."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera
from anomalib_pose.scene.foreground import WHITE_TOLERANCE, boundary_band


@dataclass(frozen=True)
class TrainingView:
    """One posed image as the target of a fit.

    Args:
        camera: one camera.
        image: RGB (H, W, 3), over white if ``foreground`` is known.
        foreground: mask of the object (H, W), or None.
        band: mask (H, W) of pixels with an unknown coverage: at the silhouette, and white pixels inside it; None if
            ``foreground`` is None.
    """

    camera: Camera
    image: Tensor
    foreground: Tensor | None
    band: Tensor | None

    def cropped(self, margin: int) -> "TrainingView":
        """Crop the view to the object's box, widened by ``margin`` pixels; a view without the object stays whole."""
        if self.foreground is None or not bool(self.foreground.any()):
            return self
        rows, columns = self.foreground.any(1).nonzero()[:, 0], self.foreground.any(0).nonzero()[:, 0]
        top, bottom = max(0, int(rows[0]) - margin), min(self.camera.height, int(rows[-1]) + 1 + margin)
        left, right = max(0, int(columns[0]) - margin), min(self.camera.width, int(columns[-1]) + 1 + margin)
        intrinsics = self.camera.K.clone()
        intrinsics[0, 2] -= left
        intrinsics[1, 2] -= top
        box = (slice(top, bottom), slice(left, right))
        return TrainingView(
            replace(self.camera, K=intrinsics, width=right - left, height=bottom - top),
            self.image[box].contiguous(),
            self.foreground[box].contiguous(),
            None if self.band is None else self.band[box].contiguous(),
        )

    def target(self, background: Tensor, alpha: Tensor) -> Float[Tensor, "h w 3"]:
        """Return the image over a background color.

        In the ``band`` the coverage of a pixel is unknown. There the target uses the rendering's own alpha without its
        gradient, which equals a comparison over white.

        Args:
            background: color (3,).
            alpha: opacity of the rendering (H, W).
        """
        if self.foreground is None:
            return self.image
        coverage = self.foreground
        if self.band is not None:
            coverage = torch.where(self.band > 0, alpha.detach(), coverage)
        return self.image + (1 - coverage)[..., None] * (background - 1)


def make_training_views(
    images: Float[Tensor, "c 3 h w"],
    cameras: Camera,
    foreground: Float[Tensor, "c h w"] | None,
    divisor: int = 1,
) -> list[TrainingView]:
    """Prepare training views, at the size of the images divided by ``divisor``.

    Args:
        images: RGB in [0, 1], over white if ``foreground`` is known.
        cameras: C cameras of the images.
        foreground: masks in [0, 1], or None.
        divisor: side in pixels of the squares that images and masks are averaged over.
    """
    if divisor > 1:
        height, width = images.shape[-2] // divisor, images.shape[-1] // divisor
        images = F.interpolate(images, (height, width), mode="area")
        cameras = cameras.resized(width, height)
        if foreground is not None:
            foreground = F.interpolate(foreground[:, None], (height, width), mode="area")[:, 0]
    views = []
    for index, image in enumerate(images):
        mask = band = None
        if foreground is not None:
            soft = foreground[index]
            mask = (soft > 0).to(soft) if bool(((soft > 0) & (soft < 1)).any()) else soft
            # White pixels inside the silhouette show a white part, or the background through a hole.
            band = torch.maximum(boundary_band(mask), mask * (image > 1 - WHITE_TOLERANCE).all(0))
        views.append(TrainingView(cameras[index], image.permute(1, 2, 0).contiguous(), mask, band))
    return views
