# SPDX-License-Identifier: Apache-2.0
"""anomalib's visualizer with the prepared query where its file does not lie under the map."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.item_visualizer import visualize_image_item
from PIL import Image

_WIDE_MODES = ("I", "F")


class QueryVisualizer(ImageVisualizer):
    """Writes pictures of queries: their files, or the prepared image of an undistorted, padded or 16-bit query."""

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the pictures of a batch.

        Args:
            trainer: trainer with the folder of results.
            pl_module: model with the format of its queries.
            outputs: not used.
            batch: batch of queries with maps.
            batch_idx: not used.
            dataloader_idx: not used.
        """
        query_format = getattr(getattr(pl_module, "model", None), "query_format", None)
        distorted = query_format is not None and any(any(camera.distortion) for camera in query_format.cameras)
        paths = getattr(batch, "image_path", None) or []
        if not any(distorted or _is_prepared(path, batch.image.shape[-2:]) for path in paths):
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            return
        folder = vars(self).get("output_dir") or Path(trainer.default_root_dir) / "images"
        datamodule = getattr(trainer, "datamodule", None)
        names = [getattr(datamodule, name, None) for name in ("name", "category")]
        for item in batch:
            fields = {name: getattr(item, name, None) for name in vars(item)}
            if distorted or _is_prepared(item.image_path, item.image.shape[-2:]):
                fields["image_path"] = None  # anomalib then shows the field image
                fields["image"] = item.image.clamp(0, 1)
            picture = visualize_image_item(
                SimpleNamespace(**fields),
                fields=self.fields,
                overlay_fields=self.overlay_fields,
                field_size=self.field_size,
                fields_config=self.fields_config,
                overlay_fields_config=self.overlay_fields_config,
                text_config=self.text_config,
            )
            if picture is not None:
                picture.save(generate_output_filename(item.image_path or "", folder, *names))


def _is_prepared(path: str | None, size: tuple[int, int]) -> bool:
    """Return whether the image of a query was padded, or has values that anomalib's reader cuts off."""
    if not path or not Path(path).is_file():
        return False
    with Image.open(path) as image:
        (width, height), mode = image.size, image.mode
    return mode.startswith(_WIDE_MODES) or abs(width / height - size[1] / size[0]) > 1 / min(size)
