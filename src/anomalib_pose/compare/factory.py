# SPDX-License-Identifier: Apache-2.0
"""Comparators by name."""

from typing import Any

from anomalib_pose.compare.calibrated import CalibratedComparator
from anomalib_pose.compare.paper import PaperComparator


def make_comparator(
    name: str = "calibrated", backbone: str = "", weights_path: str = "", **options: Any
) -> CalibratedComparator | PaperComparator:
    """Build a comparator.

    Args:
        name: ``"calibrated"`` or ``"paper"``.
        backbone: timm name of the network; empty for none, or for the papers' EfficientNet-B4 in ``"paper"``.
        weights_path: file with the network's weights; empty to let timm download them once.
        options: further arguments of the comparator.

    Raises:
        ValueError: if there is no such comparator.
    """
    if name == "calibrated":
        return CalibratedComparator(backbone=backbone, weights_path=weights_path, **options)
    if name == "paper":
        if backbone:
            options["backbone"] = backbone
        return PaperComparator(weights_path=weights_path, **options)
    msg = f"comparator should be 'calibrated' or 'paper', got {name!r}."
    raise ValueError(msg)
