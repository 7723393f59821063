# SPDX-License-Identifier: Apache-2.0
"""Comparators by name."""

from typing import Any

from anomalib_pose.compare.calibrated import CalibratedComparator
from anomalib_pose.compare.paper import PaperComparator, ProductComparator

# Chosen on the car of a brick data set under two other lights: reflectance and fine stages bear a change of light best,
# the bare colour not at all.
_OTHER_LIGHT: dict[str, Any] = {
    "layers": (0, 1),
    "layer_weights": (3.0, 2.0),
    "feature_mix": 0.5,
    "colour_weight": 0.0,
    "structure_weight": 1.0,
    "reflectance_weight": 4.0,
}


def make_comparator(
    name: str = "calibrated", backbone: str = "", weights_path: str = "", **options: Any
) -> CalibratedComparator | PaperComparator:
    """Build a comparator.

    Args:
        name: ``"calibrated"``; ``"illumination"``: calibrated, for queries in other light; ``"paper"``: that of
            OmniposeAD and SplatPose; ``"product"``: PIAD's.
        backbone: timm name of the network; empty for none, or for the papers' EfficientNet-B4 in ``"paper"``.
        weights_path: file with the network's weights; empty to let timm download them once.
        options: further arguments of the comparator.

    Raises:
        ValueError: if there is no such comparator.
    """
    if name == "calibrated":
        return CalibratedComparator(backbone=backbone, weights_path=weights_path, **options)
    if name == "illumination":
        return CalibratedComparator(backbone=backbone, weights_path=weights_path, **{**_OTHER_LIGHT, **options})
    if name in {"paper", "product"}:
        if backbone:
            options["backbone"] = backbone
        chosen = PaperComparator if name == "paper" else ProductComparator
        return chosen(weights_path=weights_path, **options)
    msg = f"comparator should be 'calibrated', 'illumination', 'paper' or 'product', got {name!r}."
    raise ValueError(msg)
