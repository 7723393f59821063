# SPDX-License-Identifier: Apache-2.0
"""Export of a detector to ONNX and OpenVINO; an export that fails leaves no files."""

import itertools
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType
from anomalib.models.components.base.export_mixin import ExportMixin
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from anomalib_pose.deploy.export_settings import checked_compression
from anomalib_pose.deploy.openvino.precision import keep_precision
from anomalib_pose.deploy.undecided import raise_undecided, undecided_score
from anomalib_pose.progress import stage
from anomalib_pose.storage import make_temporary_folder

logger = logging.getLogger(__name__)

_OPSET = 18
_CALIBRATION_IMAGES = 64


class ExportedDetector(ExportMixin, LightningModule):
    """Detector and post-processor as one graph from images of any size to scores, labels, maps and masks.

    Args:
        detector: built and calibrated detector; returns ``pred_score`` and ``anomaly_map``. If its attribute
            ``keeps_precision`` is true, OpenVINO models are written so that they run in single precision on every
            machine.
        post_processor: post-processor with thresholds on the detector's scale, or None for raw scores.
    """

    def __init__(self, detector: nn.Module, post_processor: nn.Module | None) -> None:
        super().__init__()
        self.model = detector
        self.post_processor = post_processor
        self.undecided_score = undecided_score(post_processor)
        self.eval()

    def forward(self, images: Tensor) -> InferenceBatch:
        """Predict scores and maps of images.

        Args:
            images: RGB (B, 3, H, W) in [0, 1].
        """
        output = self.model(images)
        scores = output.pred_score
        if hasattr(output, "decided"):
            scores = raise_undecided(scores, output.decided, self.undecided_score)
        prediction = InferenceBatch(pred_score=scores, anomaly_map=output.anomaly_map)
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
            export_root: parent folder of ``weights/onnx``.
            model_file_name: file name without suffix.
            input_size: fixed (height, width) of the images, or None for any.
            kwargs: arguments of ``torch.onnx.export``.
        """
        kwargs.setdefault("opset_version", _OPSET)
        # The optimizer takes minutes for an unrolled graph, and runtimes simplify the graph again anyway.
        kwargs.setdefault("optimize", False)
        kwargs.setdefault("verbose", False)
        with _temporary(export_root) as folder:
            with stage("Trace the graph"):
                written = super().to_onnx(folder, model_file_name, input_size, **kwargs)
            return _publish(written, folder, export_root)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/openvino/<name>.xml`` and ``.bin``, which take one image at a time.

        anomalib's inferencer passes one image. OpenVINO fuses chains of operations only where it knows the number of
        images; a model for any number of images takes twice as long for an image.
        ``ov_kwargs={"input": [-1, 3, -1, -1]}`` writes such a model.

        Args:
            export_root: parent folder of ``weights/openvino``.
            model_file_name: file name without suffix.
            input_size: fixed (height, width) of the images, or None for any.
            compression_type: None for single precision; see anomalib's ``CompressionType``.
            kwargs: see anomalib's ``to_openvino``.
        """
        compression_type = checked_compression(compression_type)
        options = {"input": [1, 3, *(input_size or (-1, -1))], **(kwargs.pop("ov_kwargs", None) or {})}
        with _temporary(export_root) as folder:
            with stage("Convert to OpenVINO"):
                written = super().to_openvino(
                    folder, model_file_name, input_size, compression_type, ov_kwargs=options, **kwargs
                )
            if getattr(self.model, "keeps_precision", False):
                with stage("Keep the precision"):
                    keep_precision(written)
            return _publish(written, folder, export_root)

    def _compress_ov_model(
        self, model: Any, compression_type: CompressionType | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Compress the model as one stage; see ``_compress``."""
        if compression_type is None:
            return super()._compress_ov_model(model, compression_type, *args, **kwargs)
        with stage("Compress the weights"):
            return self._compress(model, compression_type, *args, **kwargs)

    def _compress(
        self,
        model: Any,
        compression_type: CompressionType | None = None,
        datamodule: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Compress only the network's convolutions to eight bits: rasterizing, poses and maps need full precision."""
        keeps_precision = getattr(self.model, "keeps_precision", False)
        if compression_type != CompressionType.INT8_PTQ and not (
            compression_type == CompressionType.INT8 and keeps_precision
        ):
            return super()._compress_ov_model(model, compression_type, datamodule, *args, **kwargs)
        import nncf

        comparator = getattr(self.model, "comparator", None)
        network: Any = getattr(comparator, "extractor", None)
        if network is None and compression_type == CompressionType.INT8:
            logger.warning("INT8 compresses the comparator's network. This model has none, so nothing is compressed.")
            return model
        if compression_type == CompressionType.INT8_PTQ:
            check_quantization(comparator, datamodule)
        outside = nncf.IgnoredScope(names=_outside_network(model, network), validate=False)
        if compression_type == CompressionType.INT8:
            return nncf.compress_weights(model, ignored_scope=outside)
        datamodule.setup("fit")
        images = (image[None].numpy() for batch in datamodule.val_dataloader() for image in batch.image)
        calibration_images = list(itertools.islice(images, _CALIBRATION_IMAGES))
        dataset = nncf.Dataset(calibration_images)
        return nncf.quantize(model, dataset, subset_size=len(calibration_images), ignored_scope=outside)


def check_quantization(comparator: Any, datamodule: Any) -> None:
    """Refuse INT8_PTQ without a network or without images.

    Args:
        comparator: comparator of the detector; None for a graph without one.
        datamodule: datamodule of the export, or None.

    Raises:
        ValueError: if one of them is missing.
    """
    if getattr(comparator, "extractor", None) is None:
        msg = "INT8_PTQ quantizes the comparator's network. This model has none: give a backbone, or export FP16."
        raise ValueError(msg)
    if datamodule is None:
        msg = "INT8_PTQ measures activations on images, got no data: give --data MAD --data.root ... to the export."
        raise ValueError(msg)


def _outside_network(model: Any, network: nn.Module) -> list[str]:
    """Return the names of all operations but the network's convolutions, which their weights' shapes identify.

    The names of convolutions are lost where the conversion folds the normalization into them. The result has no
    constants, because ignoring the constants would also exclude the network's weights.
    """
    shapes = {tuple(part.weight.shape) for part in network.modules() if isinstance(part, nn.Conv2d)}
    inside: list[str] = []
    outside: list[str] = []
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            continue
        shape: tuple[int, ...] = ()
        if node.get_type_name() == "Convolution":
            shape = tuple(node.input_value(1).get_shape())
        elif node.get_type_name() == "GroupConvolution":
            groups, group_channels, *rest = node.input_value(1).get_shape()
            shape = (groups * group_channels, *rest)
        (inside if shape in shapes else outside).append(node.get_friendly_name())
    if not inside:
        msg = "INT8 compresses the network's convolutions, but the graph has none of their shapes: export FP16."
        raise ValueError(msg)
    return outside


def _publish(written: Path, folder: str, export_root: Path | str) -> Path:
    """Move an export from its temporary folder to the same place under the root.

    The model file comes last, so that it is never there without its data files.
    """
    target = Path(export_root) / written.parent.relative_to(folder)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(written.parent.iterdir(), key=lambda path: path == written):
        path.replace(target / path.name)
    return target / written.name


@contextmanager
def _temporary(export_root: Path | str) -> Iterator[str]:
    """Yield a temporary folder in the root; a failed export removes it, and a root that did not exist before."""
    root = Path(export_root)
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    folder = make_temporary_folder(root, "export")
    try:
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        # the root is not empty if an interruption left files that were already moved
        if is_new and not any(root.iterdir()):
            root.rmdir()
        raise
