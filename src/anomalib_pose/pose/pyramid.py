# SPDX-License-Identifier: Apache-2.0
"""Image operations of the direct alignment, on images (C, H, W)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_TRUNCATE = 3.0


def shrink(image: Float[Tensor, "c h w"], width: int, height: int) -> Float[Tensor, "c height width"]:
    """Resize an image by means over areas."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="area")[0]


def gaussian_blur_replicated(image: Float[Tensor, "c h w"], sigma: float) -> Float[Tensor, "c h w"]:
    """Blur an image with a Gaussian and replicated borders; ``sigma`` in pixels, 0 for no blur."""
    if sigma <= 0:
        return image
    reach = min(int(_TRUNCATE * sigma + 0.5), *(size - 1 for size in image.shape[-2:]))
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    taps = torch.exp(-0.5 * (offsets / sigma).square())
    taps = (taps / taps.sum()).expand(image.shape[0], 1, -1)
    padded = F.pad(image[None], (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, taps[:, :, None], groups=image.shape[0])
    return F.conv2d(across, taps[..., None], groups=image.shape[0])[0]


def central_differences(image: Float[Tensor, "c h w"]) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "c h w"]]:
    """Return the derivatives along x and y per pixel; zero on the border."""
    along_x, along_y = torch.zeros_like(image), torch.zeros_like(image)
    along_x[:, :, 1:-1] = (image[:, :, 2:] - image[:, :, :-2]) / 2
    along_y[:, 1:-1] = (image[:, 2:] - image[:, :-2]) / 2
    return along_x, along_y
