# SPDX-License-Identifier: Apache-2.0
"""Foreground masks of objects on a white background."""

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

WHITE_TOLERANCE = 0.01
"""Largest distance from white, per channel, of a pixel of a white background."""
_MIN_WHITE_BORDER = 0.9
_PURE_WHITE = 1 - 0.5 / 255
_MIN_HOLE = 5e-4  # fraction of the image's pixels; a smaller region may be a highlight
_MIN_PURITY = 0.6  # fraction of pure white pixels in a hole; pixels at its rim may be mixed with the object


def white_foreground(
    images: Float[Tensor, "b 3 h w"], tolerance: float = WHITE_TOLERANCE
) -> Float[Tensor, "b h w"] | None:
    """Return masks of an object photographed on white, or None if the background is not white.

    The background has two parts: the white region that touches the image border, and larger regions of pure white,
    which show the background through holes. White parts of the object stay in the mask because some of their pixels are
    shaded. Highlights stay because they are small. The background counts as white if nine tenths of the border pixels
    of all images are within ``tolerance`` of white.

    Args:
        images: RGB in [0, 1].
        tolerance: largest distance from white, per channel, of a background pixel.
    """
    white = (images > 1 - tolerance).all(1)
    border = torch.cat([white[:, 0], white[:, -1], white[:, :, 0], white[:, :, -1]], -1)
    if float(border.float().mean()) < _MIN_WHITE_BORDER:
        return None
    masks = []
    for white_pixels, pure in zip(white.cpu().numpy(), (images > _PURE_WHITE).all(1).cpu().numpy(), strict=True):
        regions, count = ndimage.label(white_pixels)
        border_regions = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
        numbers = np.arange(1, count + 1)
        purity, size = ndimage.mean(pure, regions, numbers), ndimage.sum(white_pixels, regions, numbers)
        holes = numbers[(np.asarray(purity) > _MIN_PURITY) & (np.asarray(size) > _MIN_HOLE * white_pixels.size)]
        masks.append(~np.isin(regions, np.union1d(border_regions[border_regions > 0], holes)))
    return torch.from_numpy(np.stack(masks)).to(images)


def boundary_band(foreground: Float[Tensor, "h w"], width: int = 1) -> Float[Tensor, "h w"]:
    """Return a mask of the pixels within ``width`` of a mask's silhouette, which the object may cover partly."""
    size = 2 * width + 1
    dilated = torch.nn.functional.max_pool2d(foreground[None, None], size, 1, width)[0, 0]
    eroded = -torch.nn.functional.max_pool2d(-foreground[None, None], size, 1, width)[0, 0]
    return (dilated > eroded).to(foreground)
