# SPDX-License-Identifier: Apache-2.0
"""Structural similarity of two images (Wang et al. 2004)."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_C1, _C2 = 0.01**2, 0.03**2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of images (H, W, 3), window 11, sigma 1.5, zero padding."""
    height, width = a.shape[-3:-1]
    offsets = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    taps = torch.exp(-0.5 * (offsets / 1.5).square())
    taps = (taps / taps.sum()).expand(15, 1, -1)
    x, y = a.permute(2, 0, 1)[None], b.permute(2, 0, 1)[None]
    stacked = torch.cat([x, y, x * x, y * y, x * y]).reshape(1, 15, height, width)
    blurred = F.conv2d(stacked, taps[:, :, None], padding=(0, 5), groups=15)
    blurred = F.conv2d(blurred, taps[..., None], padding=(5, 0), groups=15).view(5, 3, height, width)
    mu_x, mu_y = blurred[0], blurred[1]
    var_x, var_y, cov = blurred[2] - mu_x * mu_x, blurred[3] - mu_y * mu_y, blurred[4] - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + _C1) / (mu_x * mu_x + mu_y * mu_y + _C1)
    return (luminance * (2 * cov + _C2) / (var_x + var_y + _C2)).mean()
