# SPDX-License-Identifier: Apache-2.0
"""anomalib's visualizer with pictures of clouds."""

from typing import Any

import torch
from anomalib.visualization import ImageVisualizer

from anomalib_pose.models.point_ad.aggregation import CloudGrid
from anomalib_pose.models.point_ad.drawing import draw_scored_cloud, draw_view_sheet

FIELDS = ("photograph", "gt_mask", "view_sheet", "scored_cloud")
"""The photograph, or a view, as the model saw it; the true mask; all views with heat; the colored cloud."""
OVERLAYS = (("photograph", ("anomaly_map",)),)


def grid_of(batch: Any, index: int) -> CloudGrid:
    """Where the views show the cells of one cloud of a ``CloudBatch``."""
    return CloudGrid(
        batch.points[index], batch.valid[index], bool(batch.organized[index]), batch.pixels[index], batch.visible[index]
    )


class CloudVisualizer(ImageVisualizer):
    """Draws clouds by their scores as they are when all callbacks before it are done: normalized, if they are.

    Args:
        arguments: of ``ImageVisualizer``; without any, its pictures have ``FIELDS`` and the map over the photograph.
    """

    def __init__(self, **arguments: Any) -> None:
        arguments.setdefault("fields", list(FIELDS))
        arguments.setdefault("overlay_fields", [(base, list(over)) for base, over in OVERLAYS])
        super().__init__(**arguments)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add the pictures to the batch, and write them.

        Args:
            trainer: gives the folder of results.
            pl_module: not used.
            outputs: not used.
            batch: a ``CloudBatch`` with maps.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        maps = batch.anomaly_map.reshape(batch.valid.shape)
        grids = [grid_of(batch, index) for index in range(len(maps))]
        batch.update(
            photograph=batch.image,
            view_sheet=torch.stack([draw_view_sheet(*each) for each in zip(batch.views, grids, maps, strict=True)]),
            scored_cloud=torch.stack([draw_scored_cloud(*each) for each in zip(grids, maps, strict=True)]),
        )
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
