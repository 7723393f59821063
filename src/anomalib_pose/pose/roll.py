# SPDX-License-Identifier: Apache-2.0
"""A query as a camera that is turned about its optical axis would see it."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import resize_image_mask_K
from anomalib_pose.pose.types import Query


def roll_matrix(angle: float) -> Float[Tensor, "3 3"]:
    """Rotation about the optical axis, to be multiplied from the right to the orientation of the camera that is rolled.

    Args:
        angle: radians, from +x to +y.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def downscale_query(query: Query, size: int) -> Query:
    """A query with at most ``size`` pixels along its longer side."""
    height, width = query.image.shape[-2:]
    scale = min(1.0, size / max(width, height))
    to = max(1, round(width * scale)), max(1, round(height * scale))
    image, mask, intrinsics = resize_image_mask_K(query.image, query.foreground, query.K, *to)
    return Query(image, intrinsics, mask)


def undo_roll(query: Query, angle: float) -> Query:
    """What a camera would have seen that was not rolled by an angle: the image turned about its principal point.

    What lies outside the image is taken for the query's background.

    Args:
        query: seen by the rolled camera.
        angle: of its roll, radians; see ``roll_matrix``.
    """
    height, width = query.image.shape[-2:]
    K = query.K  # noqa: N806
    rows, columns = torch.meshgrid(
        torch.arange(height, device=K.device) + 0.5, torch.arange(width, device=K.device) + 0.5, indexing="ij"
    )
    rays = torch.stack([columns, rows, torch.ones_like(rows)], -1).to(K) @ torch.linalg.inv(K).T
    # a ray of the upright camera is, for the rolled one, turned back
    seen = rays @ roll_matrix(angle).to(K) @ K.T
    grid = 2 * seen[None, ..., :2] / K.new_tensor([width, height]) - 1
    background = query.background[:, None, None]
    image = F.grid_sample((query.image - background)[None], grid, align_corners=False)[0] + background
    mask = query.foreground
    if mask is not None:
        mask = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
    return Query(image, K, mask)
