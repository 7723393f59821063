# SPDX-License-Identifier: Apache-2.0
"""A detector as anomalib exports it: to ONNX and OpenVINO, whole or not at all."""

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType
from anomalib.models.components.base.export_mixin import ExportMixin
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from anomalib_pose.deploy.openvino.precision import keep_precision

logger = logging.getLogger(__name__)

_OPSET = 18
_CALIBRATION_IMAGES = 64


class ExportedDetector(ExportMixin, LightningModule):
    """Detector and post-processor as one graph: an image of any size in, score, label, map and mask out.

    Args:
        detector: built and calibrated; gives ``pred_score`` and ``anomaly_map``. Where it says ``keeps_precision``,
            OpenVINO models are written so that they run in single precision on every machine.
        post_processor: with thresholds on the detector's scale, or None for raw scores.
    """

    def __init__(self, detector: nn.Module, post_processor: nn.Module | None) -> None:
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
        with _temporary(export_root) as folder:
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

        OpenVINO fuses chains of operations only where it knows the number of images: for any number of them an image
        takes twice as long, and anomalib's inferencer gives one. ``ov_kwargs={"input": [-1, 3, -1, -1]}`` asks for any.

        Args:
            export_root: folder that ``weights/openvino`` is made in.
            model_file_name: name without suffix.
            input_size: fixed (height, width) of the images, or None for any.
            compression_type: None for single precision; see anomalib's ``CompressionType``.
            kwargs: see anomalib's ``to_openvino``.
        """
        options = {"input": [1, 3, *(input_size or (-1, -1))], **(kwargs.pop("ov_kwargs", None) or {})}
        with _temporary(export_root) as folder:
            written = super().to_openvino(
                folder, model_file_name, input_size, compression_type, ov_kwargs=options, **kwargs
            )
            if getattr(self.model, "keeps_precision", False):
                keep_precision(written)
            return _publish(written, folder, export_root)

    def _compress_ov_model(
        self,
        model: Any,
        compression_type: CompressionType | None = None,
        datamodule: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Eight bits for the network's convolutions alone: what is drawn, poses and maps need their digits."""
        own = getattr(self.model, "keeps_precision", False)
        if compression_type != CompressionType.INT8_PTQ and not (compression_type == CompressionType.INT8 and own):
            return super()._compress_ov_model(model, compression_type, datamodule, *args, **kwargs)
        import nncf

        network = getattr(self.model.comparator, "extractor", None)
        if network is None and compression_type == CompressionType.INT8:
            logger.warning("INT8 compresses the comparison's network, and there is none: all stays as it is.")
            return model
        if network is None:
            msg = "INT8_PTQ quantizes the comparison's network, and there is none: give a backbone, or export FP16."
            raise ValueError(msg)
        outside = nncf.IgnoredScope(names=_outside_network(model, network), validate=False)
        if compression_type == CompressionType.INT8:
            return nncf.compress_weights(model, ignored_scope=outside)
        if datamodule is None:
            msg = "INT8_PTQ measures activations on images: give the data too (--data MAD --data.root ...)."
            raise ValueError(msg)
        datamodule.setup("fit")
        images = (image[None].numpy() for batch in datamodule.val_dataloader() for image in batch.image)
        chosen = list(itertools.islice(images, _CALIBRATION_IMAGES))
        return nncf.quantize(model, nncf.Dataset(chosen), subset_size=len(chosen), ignored_scope=outside)


def _outside_network(model: Any, network: nn.Module) -> list[str]:
    """Names of all operations but the network's convolutions, which are known by the shapes of their weights.

    Their names are lost where a conversion folds the normalization into them. Constants are not named, for then their
    weights would be left out too.
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
            groups, each, *rest = node.input_value(1).get_shape()
            shape = (groups * each, *rest)
        (inside if shape in shapes else outside).append(node.get_friendly_name())
    if not inside:
        msg = "INT8 is for the network's convolutions, but found none of their shapes: export FP16."
        raise ValueError(msg)
    return outside


def _publish(written: Path, folder: str, export_root: Path | str) -> Path:
    """Move an export from its temporary folder to the same place under the root.

    The file itself comes last, so that it is never there without its data.
    """
    target = Path(export_root) / written.parent.relative_to(folder)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(written.parent.iterdir(), key=lambda path: path == written):
        path.replace(target / path.name)
    logger.info("Exported to %s.", target / written.name)
    return target / written.name


@contextmanager
def _temporary(export_root: Path | str) -> Iterator[str]:
    """A folder beside the target; an export that fails leaves nothing in it, and no new root either."""
    root = Path(export_root)
    is_new = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".export-", dir=root) as folder:
            yield folder
    except BaseException:
        # an interruption while the files are moved may have left some of them
        if is_new and not any(root.iterdir()):
            root.rmdir()
        raise
