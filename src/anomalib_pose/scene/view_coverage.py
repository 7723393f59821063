# SPDX-License-Identifier: Apache-2.0
"""Telling whether there are few views of an object, and what is done about it."""

import logging

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_pose.geometry import Camera, viewed_point

logger = logging.getLogger(__name__)

_FEW = 17.0  # degrees; with neighbors 13 apart an object was rendered well, 19 and 29 apart less and less


def median_view_spacing(cameras: Camera) -> float:
    """Median angle in degrees from a camera to its nearest neighbor, seen from the point that all look at.

    Args:
        cameras: two or more.
    """
    directions = F.normalize(cameras.center - viewed_point(cameras)[0], dim=-1).double()
    cosine = (directions @ directions.T).clamp(-1, 1).fill_diagonal_(-1)
    return float(torch.rad2deg(cosine.amax(1).acos()).median())


def has_sparse_views(cameras: Camera) -> bool:
    """Whether views are so far apart that what lies between them is guessed."""
    return len(cameras) < 2 or median_view_spacing(cameras) > _FEW


def warn_about_sparse_views(
    cameras: Camera, *, masked: bool, attenuates_unsupported: bool, has_patch_memory: bool
) -> None:
    """Log a warning about few views, with the path that is taken.

    Args:
        cameras: of the views.
        masked: whether the foreground is known.
        attenuates_unsupported: whether references are held against the photographs that are nearest.
        has_patch_memory: whether there is a memory of good views' patches.
    """
    if len(cameras) < 2:
        logger.warning("One view is too few to know an object from: all other sides are guessed.")
        return
    begin = "the hull of the masks" if masked else "random points in front of the cameras, for there are no masks"
    confirmed = (
        "what none of the nearest photographs shows of a reference counts less; " if attenuates_unsupported else ""
    )
    rest = (
        "scores get the share of the memory of good patches that held-out views ask for"
        if has_patch_memory
        else "there is no memory of good patches to fall back on (it needs a backbone)"
    )
    logger.warning(
        "%d views with a median of %.0f degrees between neighbors are few: what lies between them is guessed, and "
        "small defects may be missed. The fit begins at %s; %s%s.",
        len(cameras), median_view_spacing(cameras), begin, confirmed, rest,
    )  # fmt: skip
