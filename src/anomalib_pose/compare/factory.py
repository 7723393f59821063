# SPDX-License-Identifier: Apache-2.0
"""Construction of comparators from their names."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from anomalib_pose.compare.calibrated import CalibratedComparator
from anomalib_pose.compare.features import NetworkSettings
from anomalib_pose.compare.paper import PAPER_NETWORK, PaperComparator, ProductComparator
from anomalib_pose.compare.protocol import Comparator
from anomalib_pose.compare.settings import LayerWeights, ScoringSettings, WindowSettings

ComparatorName = Literal["calibrated", "illumination", "paper", "product"]
"""Names that ``make_comparator`` accepts; each has a row in ``_BUILDERS``."""

# Selected on the car of brickmad under two other lights. Reflectance and fine layers depend least on the
# light, plain color depends on it most. The larger window preserves more of small defects.
_ILLUMINATION_LAYERS = (0, 1)
_ILLUMINATION_SETTINGS: dict[str, Any] = {
    "window": WindowSettings(size=400),
    "weights": LayerWeights(color=0.0, structure=1.0, reflectance=4.0, features=(3.0, 2.0), feature_mix=0.5),
    "scoring": ScoringSettings(blur_sigma=3.125),  # covers the same part of the object as 2 pixels in a window of 256
}


def make_comparator(
    name: ComparatorName | str = "calibrated",
    backbone: str = "",
    weights_path: str = "",
    second_backbone: str = "",
    second_weights_path: str = "",
    *,
    reflectance_weights_path: str = "",
    network_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Comparator:
    """Build a comparator from its name.

    Args:
        name: ``"calibrated"``; ``"illumination"``: calibrated, for queries in another light; ``"paper"``: the
            comparison of OmniposeAD and SplatPose; ``"product"``: the comparison of PIAD.
        backbone: timm name of the network. Empty for no network in ``"calibrated"`` and ``"illumination"``, and
            for EfficientNet-B4 in ``"paper"`` and ``"product"``.
        weights_path: file with the network's weights; empty to let timm download them once.
        second_backbone: timm name of a second network, for ``"calibrated"`` and ``"illumination"``; empty for none.
        second_weights_path: file with the second network's weights; empty to let timm download them once.
        reflectance_weights_path: file of the published decomposition network; empty for the closed form. Comparators
            without reflectance ignore it.
        network_options: further fields of the network's ``NetworkSettings``, or None.
        options: further arguments of the comparator; they replace those of ``"illumination"``.

    Raises:
        ValueError: if the name is unknown, or the comparator takes no second network.
    """
    if name not in _BUILDERS:
        msg = f"comparator should be one of {', '.join(map(repr, _BUILDERS))}, got {name!r}."
        raise ValueError(msg)
    if second_backbone and name not in {"calibrated", "illumination"}:
        msg = f"The comparator {name!r} has one network: leave second_backbone empty, got {second_backbone!r}."
        raise ValueError(msg)
    if second_backbone:
        options["second_network"] = NetworkSettings(second_backbone, (), weights_path=second_weights_path)
    network = {"backbone": backbone, "weights_path": weights_path, **(network_options or {})}
    return _BUILDERS[name](network, reflectance_weights_path, options)


def _calibrated(network: dict[str, Any], _: str, options: dict[str, Any]) -> Comparator:
    return CalibratedComparator(NetworkSettings(**network) if network["backbone"] else None, **options)


def _illumination(network: dict[str, Any], reflectance_weights_path: str, options: dict[str, Any]) -> Comparator:
    return CalibratedComparator(
        NetworkSettings(**{"layers": _ILLUMINATION_LAYERS, **network}) if network["backbone"] else None,
        reflectance_weights_path=reflectance_weights_path,
        **{**_ILLUMINATION_SETTINGS, **options},
    )


def _paper(network: dict[str, Any], _: str, options: dict[str, Any]) -> Comparator:
    return PaperComparator(
        NetworkSettings(**{**network, "backbone": network["backbone"] or PAPER_NETWORK.backbone}), **options
    )


def _product(network: dict[str, Any], reflectance_weights_path: str, options: dict[str, Any]) -> Comparator:
    network = {**network, "backbone": network["backbone"] or PAPER_NETWORK.backbone}
    return ProductComparator(NetworkSettings(**network), reflectance_weights_path=reflectance_weights_path, **options)


_BUILDERS: dict[str, Callable[[dict[str, Any], str, dict[str, Any]], Comparator]] = {
    "calibrated": _calibrated,
    "illumination": _illumination,
    "paper": _paper,
    "product": _product,
}
