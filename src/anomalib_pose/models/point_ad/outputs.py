# SPDX-License-Identifier: Apache-2.0
"""Scored clouds as files, written beside anomalib's pictures."""

from pathlib import Path
from typing import Any

from anomalib.utils.path import generate_output_filename

from anomalib_pose.models.point_ad.drawing import write_scored_cloud


class CloudOutputMixin:
    """Writes a model's scored clouds as .ply when it is tested, if a folder is given, and when it predicts."""

    point_cloud_dir: str
    trainer: Any

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write clouds, if a folder is given; scores are normalized by now.

        Args:
            outputs: not used.
            batch: a ``CloudBatch`` with maps.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        del outputs, batch_idx, dataloader_idx
        if self.point_cloud_dir:
            self._write_clouds(batch, Path(self.point_cloud_dir))

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write clouds to the given folder or beside the other results; scores are normalized by now.

        Args:
            outputs: not used.
            batch: a ``CloudBatch`` with maps.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        del outputs, batch_idx, dataloader_idx
        self._write_clouds(batch, Path(self.point_cloud_dir or Path(self.trainer.default_root_dir) / "point_clouds"))

    def _write_clouds(self, batch: Any, folder: Path) -> None:
        """One .ply for each cloud, named as its picture."""
        datamodule = getattr(self.trainer, "datamodule", None)
        place = {name: getattr(datamodule, name, None) for name in ("name", "category")}
        for index, values in enumerate(batch.anomaly_map.reshape(batch.valid.shape)):
            path = generate_output_filename(batch.image_path[index], folder, place["name"], place["category"])
            valid = batch.valid[index]
            write_scored_cloud(path.with_suffix(".ply"), batch.points[index][valid], values[valid])
