# SPDX-License-Identifier: Apache-2.0
"""Export of the network with one constant shape, as a graph that scores photographs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType
from torch import Tensor, nn

from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.models.components.export_mixin import FeedForwardExportMixin
from anomalib_pose.models.looking3d.encoder import IMAGE_SIZE
from anomalib_pose.models.looking3d.photograph import PhotographOutput, inspect
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape


class BoxedInferenceBatch(NamedTuple):
    """anomalib's ``InferenceBatch`` with the box.

    Args:
        pred_score: see anomalib.
        pred_label: see anomalib.
        anomaly_map: see anomalib.
        pred_mask: see anomalib.
        box: box around the anomaly (B, 4): center, width and height as fractions of the photograph.
    """

    pred_score: Tensor
    pred_label: Tensor | None
    anomaly_map: Tensor
    pred_mask: Tensor | None
    box: Tensor


class ExportableReference(nn.Module):
    """Network with a constant shape; computes scores, maps and boxes of photographs.

    Args:
        network: network with its weights, which is copied.
        shape: one compact shape.
    """

    descriptors: Tensor
    context: Tensor
    cell_indices: Tensor

    def __init__(self, network: Looking3DModel, shape: ReferenceShape) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        compact = shape if shape.cell_indices is not None else shape.compact(network.topk)
        for name, value in compact._asdict().items():
            self.register_buffer(name, value.detach().clone())

    def forward(self, images: Tensor) -> PhotographOutput:
        """Compute scores, maps and boxes of whole photographs.

        Args:
            images: RGB (B, 3, H, W) in [0, 1]; an exported graph takes 256 x 256 pixels.
        """
        return inspect(self.network, images, ReferenceShape(self.descriptors, self.context, self.cell_indices))


class ExportedReference(ExportedDetector):
    """Writes network, shape and post-processor as one graph.

    Args:
        detector: network and shape.
        post_processor: post-processor of the model; None for raw scores.
        box: add the box as an output; anomalib's inferencers do not accept it.
    """

    def __init__(self, detector: ExportableReference, post_processor: nn.Module | None, *, box: bool = False) -> None:
        super().__init__(detector, post_processor)
        self.box = box

    def forward(self, images: Tensor) -> InferenceBatch | BoxedInferenceBatch:
        """Score photographs.

        Args:
            images: RGB (B, 3, 256, 256) in [0, 1].
        """
        output = self.model(images)
        prediction = InferenceBatch(pred_score=output.pred_score, anomaly_map=output.anomaly_map)
        if self.post_processor is not None:
            prediction = self.post_processor(prediction)
        return BoxedInferenceBatch(**prediction._asdict(), box=output.box) if self.box else prediction

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/onnx/<name>.onnx``, which takes photographs of 256 x 256 pixels.

        Args:
            export_root: parent folder of ``weights/onnx``.
            model_file_name: file name without suffix.
            input_size: (256, 256), or None for the same.
            kwargs: arguments of ``torch.onnx.export``.

        Raises:
            ValueError: if ``input_size`` is another size.
        """
        return super().to_onnx(export_root, model_file_name, _checked_size(input_size), **kwargs)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/openvino/<name>.xml`` and ``.bin``, which take a photograph of 256 x 256 pixels.

        Args:
            export_root: parent folder of ``weights/openvino``.
            model_file_name: file name without suffix.
            input_size: (256, 256), or None for the same.
            compression_type: None for single precision, FP16, or INT8 for eight bits in the network's weights, not in
                the shape.
            kwargs: see anomalib's ``to_openvino``.

        Raises:
            ValueError: if ``input_size`` or ``compression_type`` is not supported.
        """
        if compression_type not in {None, CompressionType.FP16, CompressionType.INT8}:
            msg = (
                "Looking3D's activations need more than eight bits: use INT8 (weights), FP16 or none, got "
                f"{compression_type}."
            )
            raise ValueError(msg)
        size = _checked_size(input_size)
        return super().to_openvino(export_root, model_file_name, size, compression_type, **kwargs)

    def _compress_ov_model(
        self,
        model: Any,
        compression_type: CompressionType | None = None,
        datamodule: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Compress only the network's weights to INT8: OpenVINO cannot run the constant shape in eight bits."""
        if compression_type != CompressionType.INT8:
            return super()._compress_ov_model(model, compression_type, datamodule, *args, **kwargs)
        import nncf

        return nncf.compress_weights(model, ignored_scope=nncf.IgnoredScope(names=_products_with_shape(model)))


class ReferenceExportMixin(FeedForwardExportMixin):
    """Export of a model that owns a ``Looking3DModel`` as ``self.model`` and encodes shapes."""

    graph_settings = ("reference", "box")
    model: Looking3DModel
    post_processor: Any
    eval: Callable[[], Any]
    encode_reference: Callable[[str | Path], ReferenceShape]
    warn_of_random_weights: Callable[[], None]

    def feed_forward(self, reference: str | Path = "", *, box: bool = False) -> ExportedReference:
        """Build the graph of network and shape.

        Args:
            reference: mesh or folder of rendered views; empty for the model's reference.
            box: add the box as an output; anomalib's inferencers do not accept it.

        Raises:
            FileNotFoundError: if there is no such file, or no view in the folder.
            ValueError: if there is no reference.
        """
        self.eval()
        self.warn_of_random_weights()
        detector = ExportableReference(self.model, self.encode_reference(reference))
        return ExportedReference(detector.cpu(), copy.deepcopy(self.post_processor), box=box).cpu()

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Write network and shape as ``weights/torch/<name>.pt``.

        Args:
            export_root: parent folder of ``weights/torch``.
            model_file_name: file name without suffix.
        """
        return self.feed_forward().to_torch(export_root, model_file_name)


def _products_with_shape(model: Any) -> list[str]:
    """Return the names of the products with constants of the shape: these have a batch dimension, weights do not."""
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "MatMul"
        and any(
            value.get_node().get_type_name() == "Constant" and len(value.get_shape()) > 2
            for value in node.input_values()
        )
    ]


def _checked_size(input_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the network's size; raise if another one is given."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if input_size is not None and tuple(input_size) != size:
        msg = f"Looking3D takes photographs of {IMAGE_SIZE} x {IMAGE_SIZE} pixels, got input_size {input_size}."
        raise ValueError(msg)
    return size
