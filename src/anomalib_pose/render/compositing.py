# SPDX-License-Identifier: Apache-2.0
"""Steps that all rasterizers share: batching of cameras, compositing over a background."""

import torch
from torch import Tensor

from anomalib_pose.geometry.camera import Camera


def as_batch(cameras: Camera) -> Camera:
    """Return the cameras with exactly one batch dimension.

    Raises:
        ValueError: if the cameras have more than one batch dimension.
    """
    if len(cameras.batch_shape) > 1:
        shape = tuple(cameras.batch_shape)
        msg = f"A rasterizer takes one camera or a batch of cameras (C,), got the batch shape {shape}."
        raise ValueError(msg)
    return cameras.batched()


def over_background(rgb: Tensor, alpha: Tensor, background: Tensor | None) -> Tensor:
    """Composite images (C, H, W, 3) over a background color: ``rgb + (1 - alpha) background``.

    Args:
        rgb: color over black (C, H, W, 3).
        alpha: accumulated opacity (C, H, W).
        background: color (3,) or (C, 3), or None for black.

    Raises:
        ValueError: if the background has another shape.
    """
    if background is None:
        return rgb
    if tuple(background.shape) not in {(3,), (rgb.shape[0], 3)}:
        msg = f"background should be None, (3,) or ({rgb.shape[0]}, 3), got shape {tuple(background.shape)}."
        raise ValueError(msg)
    color = background.to(rgb).expand(rgb.shape[0], 3)[:, None, None]
    return torch.addcmul(rgb, (1 - alpha)[..., None], color)
