# SPDX-License-Identifier: Apache-2.0
"""Which pixels show the object."""

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

WHITE_TOLERANCE = 0.01
"""Largest distance from white, per channel, of a pixel of a white background."""
_WHITE_BORDER = 0.9
_PURE = 1 - 0.5 / 255
_HOLE = 5e-4  # of the image's pixels; what is smaller is as likely a highlight
_PURE_SHARE = 0.6  # of a region inside the silhouette that is a hole; its rim may be mixed with what is around


def white_foreground(
    images: Float[Tensor, "b 3 h w"], tolerance: float = WHITE_TOLERANCE
) -> Float[Tensor, "b h w"] | None:
    """Masks of an object photographed on white, or None where the background is not white.

    The background is the white that touches the image's border, and what is seen of it through holes: larger regions of
    pure white. White parts inside the silhouette stay, for they are shaded somewhere, and so do highlights. The
    background counts as white if nine tenths of the border pixels of the images are within ``tolerance`` of white.

    Args:
        images: RGB in [0, 1].
        tolerance: largest distance from white, per channel, of a background pixel.
    """
    white = (images > 1 - tolerance).all(1)
    border = torch.cat([white[:, 0], white[:, -1], white[:, :, 0], white[:, :, -1]], -1)
    if float(border.float().mean()) < _WHITE_BORDER:
        return None
    masks = []
    for plane, pure in zip(white.cpu().numpy(), (images > _PURE).all(1).cpu().numpy(), strict=True):
        regions, count = ndimage.label(plane)
        touching = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
        numbers = np.arange(1, count + 1)
        purity, size = ndimage.mean(pure, regions, numbers), ndimage.sum(plane, regions, numbers)
        holes = numbers[(np.asarray(purity) > _PURE_SHARE) & (np.asarray(size) > _HOLE * plane.size)]
        masks.append(~np.isin(regions, np.union1d(touching[touching > 0], holes)))
    return torch.from_numpy(np.stack(masks)).to(images)


def boundary_band(foreground: Float[Tensor, "h w"], width: int = 1) -> Float[Tensor, "h w"]:
    """1 within ``width`` pixels of the silhouette of a mask, 0 elsewhere: where a pixel may be partly covered."""
    size = 2 * width + 1
    grown = torch.nn.functional.max_pool2d(foreground[None, None], size, 1, width)[0, 0]
    shrunk = -torch.nn.functional.max_pool2d(-foreground[None, None], size, 1, width)[0, 0]
    return (grown > shrunk).to(foreground)
