# SPDX-License-Identifier: Apache-2.0
"""anomalib's visualizer with pictures of clouds."""

from typing import Any

import torch
from anomalib.visualization import ImageVisualizer

from anomalib_pose.models.point_ad.cloud_grid import grid_of
from anomalib_pose.models.point_ad.pictures import render_scored_cloud, render_view_sheet

FIELDS = ("photograph", "gt_mask", "view_sheet", "scored_cloud")
"""Photograph, or one view, as the model reads it; true mask; all views with scores as heat; cloud in score colors."""
OVERLAYS = (("photograph", ("anomaly_map",)),)


class CloudVisualizer(ImageVisualizer):
    """Writes pictures of clouds with the scores that earlier callbacks leave: normalized, if a callback normalizes.

    Args:
        arguments: arguments of ``ImageVisualizer``; the default pictures have ``FIELDS`` and the map over the
            photograph.
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
            trainer: trainer with the folder of results.
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
            view_sheet=torch.stack([render_view_sheet(*cloud) for cloud in zip(batch.views, grids, maps, strict=True)]),
            scored_cloud=torch.stack([render_scored_cloud(*cloud) for cloud in zip(grids, maps, strict=True)]),
        )
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
