# SPDX-License-Identifier: Apache-2.0
"""Comparators by name."""

from typing import Any, Literal

from anomalib_pose.compare.calibrated import CalibratedComparator
from anomalib_pose.compare.paper import PaperComparator, ProductComparator

# Chosen on the car of a brick data set under two other lights: reflectance and fine stages bear a change of light best,
# the bare color not at all. In a larger window than the other default's more of small defects is left.
_OTHER_LIGHT: dict[str, Any] = {
    "layers": (0, 1),
    "layer_weights": (3.0, 2.0),
    "feature_mix": 0.5,
    "color_weight": 0.0,
    "structure_weight": 1.0,
    "reflectance_weight": 4.0,
    "crop_size": 400,
    "blur_sigma": 3.125,  # as wide on the object as the other default's
}

ComparatorName = Literal["calibrated", "illumination", "paper", "product"]
"""Names of ``make_comparator``."""


def make_comparator(
    name: ComparatorName | str = "calibrated",
    backbone: str = "",
    weights_path: str = "",
    second_backbone: str = "",
    second_weights_path: str = "",
    **options: Any,
) -> CalibratedComparator | PaperComparator:
    """Build a comparator.

    Args:
        name: ``"calibrated"``; ``"illumination"``: calibrated, for queries in other light; ``"paper"``: that of
            OmniposeAD and SplatPose; ``"product"``: PIAD's.
        backbone: timm name of the network; empty for none, or for the papers' EfficientNet-B4 in ``"paper"``.
        weights_path: file with the network's weights; empty to let timm download them once.
        second_backbone: timm name of a second network, for the calibrated ones; empty for none.
        second_weights_path: file with its weights; empty to let timm download them once.
        options: further arguments of the comparator.

    Raises:
        ValueError: if there is no such comparator, or it takes no second network.
    """
    if name in {"calibrated", "illumination"}:
        preset = _OTHER_LIGHT if name == "illumination" else {}
        return CalibratedComparator(
            backbone=backbone,
            weights_path=weights_path,
            second_backbone=second_backbone,
            second_weights_path=second_weights_path,
            **{**preset, **options},
        )
    if name in {"paper", "product"}:
        if second_backbone:
            msg = f"The comparator {name!r} has one network: leave second_backbone empty, got {second_backbone!r}."
            raise ValueError(msg)
        if backbone:
            options["backbone"] = backbone
        chosen = PaperComparator if name == "paper" else ProductComparator
        return chosen(weights_path=weights_path, **options)
    msg = f"comparator should be 'calibrated', 'illumination', 'paper' or 'product', got {name!r}."
    raise ValueError(msg)
