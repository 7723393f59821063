# SPDX-License-Identifier: Apache-2.0
"""Coverage of the object by training views: whether the views are sparse, and the warning if they are."""

import logging

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera, viewed_point

logger = logging.getLogger(__name__)

_SPARSE_SPACING = 17.0  # degrees; renderings were good at a spacing of 13 and worse at 19 and 29


def median_view_spacing(cameras: Camera) -> float:
    """Return the median angle in degrees between a camera and its nearest neighbor.

    The angle is measured at the point that all cameras look at.

    Args:
        cameras: two or more.
    """
    directions = F.normalize(cameras.center - viewed_point(cameras)[0], dim=-1).double()
    cosine = (directions @ directions.T).clamp(-1, 1).fill_diagonal_(-1)
    return float(torch.rad2deg(cosine.amax(1).acos()).median())


def has_sparse_views(cameras: Camera) -> bool:
    """Return whether the views are too far apart to constrain the object's appearance between them."""
    return len(cameras) < 2 or median_view_spacing(cameras) > _SPARSE_SPACING


def warn_about_sparse_views(
    cameras: Camera, *, masked: bool, attenuates_unsupported: bool, has_patch_memory: bool
) -> None:
    """Log a warning about sparse views and how the model handles them.

    Args:
        cameras: cameras of the views.
        masked: whether the foreground is known.
        attenuates_unsupported: whether the model attenuates anomalies in regions without view support.
        has_patch_memory: whether the model has a patch memory.
    """
    if len(cameras) < 2:
        logger.warning("One training view is too few: the views do not constrain the other sides of the object.")
        return
    start = "on the visual hull of the masks" if masked else "at random points, because there are no masks"
    support = ""
    if attenuates_unsupported:
        support = " Anomalies in regions without view support are attenuated."
    memory = (
        " Held-out views set the mixing weight of the patch memory."
        if has_patch_memory
        else " There is no patch memory as a fallback; it needs a backbone."
    )
    logger.warning(
        "The %d training views are sparse: neighbors are %.0f degrees apart in the median. The object's appearance "
        "between them is uncertain, and small defects may be missed. The fit starts %s.%s%s",
        len(cameras), median_view_spacing(cameras), start, support, memory,
    )  # fmt: skip
