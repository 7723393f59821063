# SPDX-License-Identifier: Apache-2.0
"""A detector as anomalib exports it: to ONNX and OpenVINO, whole or not at all."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType, ExportType
from anomalib.models.components.base.export_mixin import ExportMixin
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from anomalib_pose.deploy.detector import FeedForwardDetector

logger = logging.getLogger(__name__)

_OPSET = 18


class ExportedDetector(ExportMixin, LightningModule):
    """Detector and post-processor as one graph: an image of any size in, score, label, map and mask out.

    Args:
        detector: built and calibrated.
        post_processor: with thresholds on the detector's scale, or None for raw scores.
    """

    def __init__(self, detector: FeedForwardDetector, post_processor: nn.Module | None) -> None:
        super().__init__()
        self.model = detector
        self.post_processor = post_processor
        self.eval()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Scores of images.

        Args:
            images: RGB (B, 3, H, W) in [0, 1].
        """
        found = self.model(images)
        prediction = InferenceBatch(pred_score=found.pred_score, anomaly_map=found.anomaly_map)
        return prediction if self.post_processor is None else self.post_processor(prediction)

    @torch.no_grad()
    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/onnx/<name>.onnx``.

        Args:
            export_root: folder that ``weights/onnx`` is made in.
            model_file_name: name without suffix.
            input_size: fixed (height, width) of the images, or None for any.
            kwargs: of ``torch.onnx.export``.
        """
        kwargs.setdefault("opset_version", _OPSET)
        # The pattern rewriter takes minutes for an unrolled graph, and runtimes simplify it again anyway.
        kwargs.setdefault("optimize", False)
        with _whole(export_root, ExportType.ONNX) as folder:
            written = super().to_onnx(folder.temporary, model_file_name, input_size, **kwargs)
            return folder.publish(written)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/openvino/<name>.xml`` and ``.bin``.

        Args:
            export_root: folder that ``weights/openvino`` is made in.
            model_file_name: name without suffix.
            input_size: fixed (height, width) of the images, or None for any.
            compression_type: None for single precision; see anomalib's ``CompressionType``.
            kwargs: see anomalib's ``to_openvino``.
        """
        with _whole(export_root, ExportType.OPENVINO) as folder:
            written = super().to_openvino(folder.temporary, model_file_name, input_size, compression_type, **kwargs)
            return folder.publish(written)

    def _compress_ov_model(
        self,
        model: Any,
        compression_type: CompressionType | None = None,
        datamodule: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Compress the weights of everything, but run only the network in eight bits: poses need their digits."""
        if compression_type != CompressionType.INT8_PTQ:
            return super()._compress_ov_model(model, compression_type, datamodule, *args, **kwargs)
        import nncf

        if datamodule is None:
            msg = "INT8_PTQ measures activations on images: give the data too (--data MAD --data.root ...)."
            raise ValueError(msg)
        datamodule.setup("fit")
        images = nncf.Dataset(datamodule.val_dataloader(), lambda batch: batch.image[:1].numpy())
        keep = [node.get_friendly_name() for node in model.get_ops() if node.get_type_name() in _KEPT]
        return nncf.quantize(model, images, subset_size=64, ignored_scope=nncf.IgnoredScope(names=keep, validate=False))


_KEPT = {
    "MatMul",
    "Multiply",
    "Add",
    "Subtract",
    "Divide",
    "Interpolate",
    "GridSample",
    "ReduceMean",
    "ReduceSum",
    "TopK",
}


class _Folder:
    """A temporary folder beside the target; what is finished moves over."""

    def __init__(self, target: Path, temporary: Path) -> None:
        self.target = target
        self.temporary = temporary

    def publish(self, written: Path) -> Path:
        """Move everything beside the written file to the target; the file itself last, so that it is never alone."""
        self.target.mkdir(parents=True, exist_ok=True)
        for path in sorted(written.parent.iterdir(), key=lambda path: path == written):
            path.replace(self.target / path.name)
        logger.info("Exported to %s.", self.target / written.name)
        return self.target / written.name


class _whole:  # noqa: N801
    """Context in which an export is written to a temporary folder, so that an interrupted one leaves nothing."""

    def __init__(self, export_root: Path | str, export_type: ExportType) -> None:
        self.root = Path(export_root)
        self.target = self.root / "weights" / export_type.value

    def __enter__(self) -> _Folder:
        self.root.mkdir(parents=True, exist_ok=True)
        self._temporary = TemporaryDirectory(prefix=".export-", dir=self.root)
        return _Folder(self.target, Path(self._temporary.name))

    def __exit__(self, *args: object) -> None:
        self._temporary.cleanup()
