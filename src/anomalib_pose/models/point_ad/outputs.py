# SPDX-License-Identifier: Apache-2.0
"""Files of scored clouds, beside anomalib's pictures."""

from pathlib import Path
from typing import Any

from anomalib.utils.path import generate_output_filename

from anomalib_pose.models.point_ad.pictures import write_scored_cloud


class CloudOutputMixin:
    """Writes scored clouds as .ply: at every prediction, and at a test if ``point_cloud_dir`` is not empty."""

    point_cloud_dir: str
    trainer: Any

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Write clouds with normalized scores, if ``point_cloud_dir`` is not empty.

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
        """Write clouds with normalized scores to ``point_cloud_dir``, or beside the other results.

        Args:
            outputs: not used.
            batch: a ``CloudBatch`` with maps.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        del outputs, batch_idx, dataloader_idx
        self._write_clouds(batch, Path(self.point_cloud_dir or Path(self.trainer.default_root_dir) / "point_clouds"))

    def _write_clouds(self, batch: Any, folder: Path) -> None:
        """Write one .ply for each cloud, with the name of its picture."""
        datamodule = getattr(self.trainer, "datamodule", None)
        names = {name: getattr(datamodule, name, None) for name in ("name", "category")}
        for index, values in enumerate(batch.anomaly_map.reshape(batch.valid.shape)):
            path = generate_output_filename(batch.image_path[index], folder, names["name"], names["category"])
            valid = batch.valid[index]
            write_scored_cloud(path.with_suffix(".ply"), batch.points[index][valid], values[valid])
