# SPDX-License-Identifier: Apache-2.0
"""In-plane rotation (roll) of a query about its optical axis, and downscaling of a query."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import resize_image_mask_K
from anomalib_pose.pose.types import Query


def roll_matrix(angle: float) -> Float[Tensor, "3 3"]:
    """Return the rotation about the optical axis.

    The orientation of the rolled camera is ``camera_to_world[:3, :3] @ roll_matrix(angle)``.

    Args:
        angle: radians, from +x to +y.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def downscale_query(query: Query, size: int) -> Query:
    """Resize a query so that its longer side has at most ``size`` pixels."""
    height, width = query.image.shape[-2:]
    scale = min(1.0, size / max(width, height))
    new_size = max(1, round(width * scale)), max(1, round(height * scale))
    image, mask, intrinsics = resize_image_mask_K(query.image, query.foreground, query.K, *new_size)
    return Query(image, intrinsics, mask)


def undo_roll(query: Query, angle: float) -> Query:
    """Rotate a query about its principal point, to the image of the same camera without its roll.

    Pixels from outside the query get the query's background color.

    Args:
        query: image of the rolled camera.
        angle: the camera's roll in radians; see ``roll_matrix``.
    """
    height, width = query.image.shape[-2:]
    K = query.K  # noqa: N806
    rows, columns = torch.meshgrid(
        torch.arange(height, device=K.device) + 0.5, torch.arange(width, device=K.device) + 0.5, indexing="ij"
    )
    rays = torch.stack([columns, rows, torch.ones_like(rows)], -1).to(K) @ torch.linalg.inv(K).T
    # The inverse roll maps a ray of the upright camera to the rolled camera. Row vectors are multiplied by the
    # transpose of the inverse, which is the roll matrix itself.
    rolled_pixels = rays @ roll_matrix(angle).to(K) @ K.T
    grid = 2 * rolled_pixels[None, ..., :2] / K.new_tensor([width, height]) - 1
    background = query.background[:, None, None]
    image = F.grid_sample((query.image - background)[None], grid, align_corners=False)[0] + background
    mask = query.foreground
    if mask is not None:
        mask = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
    return Query(image, K, mask)
