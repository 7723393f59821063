# SPDX-License-Identifier: Apache-2.0
"""Which datamodules a model can use; a wrong one is refused before any batch is read."""

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataKind:
    """Datamodules of one kind of data.

    Args:
        description: the data, for messages.
        module: module of the base class of these datamodules.
        base: name of the base class.
        names: datamodules of this package, for messages.
        stock_images: whether a fitted model also scores the images of anomalib's own image datamodules.
    """

    description: str
    module: str
    base: str
    names: str
    stock_images: bool

    def owns(self, datamodule: Any) -> bool:
        """Return whether a datamodule is of this kind.

        Args:
            datamodule: any datamodule.
        """
        # a datamodule can only be an instance of a class whose module is imported
        base = getattr(sys.modules.get(self.module), self.base, None)
        return base is not None and isinstance(datamodule, base)


KINDS = {
    "posed": DataKind(
        "posed images", "anomalib_pose.data.posed.datamodule", "PosedDataModule", "MAD, MIP or PosedFolder", True
    ),
    "views": DataKind(
        "photographs with reference views",
        "anomalib_pose.data.reference_views.broken_chairs",
        "BrokenChairs",
        "BrokenChairs",
        True,
    ),
    "clouds": DataKind(
        "rendered point clouds",
        "anomalib_pose.data.point_cloud.datamodule",
        "CloudDataModule",
        "MVTec3DRendered, EyecandiesRendered or Real3DADRendered",
        False,
    ),
}
"""Kinds of data, by the name that a model's ``data_kind`` gives."""

_TILE_COLLATER = "TileCollater"
"""Class that cuts the batches of anomalib's tiled ensemble."""
_STOCK = "anomalib.data."
_STOCK_IMAGES = "anomalib.data.datamodules.image."


def check_datamodule(model_name: str, kind_name: str, datamodule: Any, stage: str) -> None:
    """Refuse a datamodule whose batches a model cannot use, and tiles of images. Datamodules of users pass.

    Args:
        model_name: class name of the model.
        kind_name: key of ``KINDS``.
        datamodule: datamodule of the run, or None.
        stage: Lightning's name of the stage that starts.

    Raises:
        ValueError: if the datamodule is of another kind, or yields tiles.
    """
    kind = KINDS[kind_name]
    if type(getattr(datamodule, "external_collate_fn", None)).__name__ == _TILE_COLLATER:
        msg = (
            f"{model_name} does not work in anomalib's tiled ensemble: a tile has another camera, and no cloud or "
            "reference views. Train on whole images."
        )
        raise ValueError(msg)
    if datamodule is None or kind.owns(datamodule):
        return
    origins = [base.__module__ for base in type(datamodule).__mro__]
    is_ours = any(other.owns(datamodule) for other in KINDS.values())
    is_stock = origins[0].startswith(_STOCK)
    has_images = any(origin.startswith(_STOCK_IMAGES) for origin in origins)
    if not is_ours and (not is_stock or (has_images and kind.stock_images and stage != "fit")):
        return
    verb = "learns from" if stage == "fit" else "scores"
    msg = f"{model_name} {verb} {kind.description}, got {type(datamodule).__name__}: give --data {kind.names}."
    raise ValueError(msg)
