# SPDX-License-Identifier: Apache-2.0
"""The network with one shape baked in, as a graph that takes single photographs."""

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
    """anomalib's ``InferenceBatch`` and the box.

    Args:
        pred_score: see anomalib.
        pred_label: see anomalib.
        anomaly_map: see anomalib.
        pred_mask: see anomalib.
        box: around the anomaly (B, 4): center, width and height in parts of the photograph.
    """

    pred_score: Tensor
    pred_label: Tensor | None
    anomaly_map: Tensor
    pred_mask: Tensor | None
    box: Tensor


class ExportableReference(nn.Module):
    """Network and shape: photographs in, scores, maps and boxes out.

    Args:
        network: with its weights; copied.
        shape: one compact shape.
    """

    descriptors: Tensor
    context: Tensor
    chosen: Tensor

    def __init__(self, network: Looking3DModel, shape: ReferenceShape) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
        compact = shape if shape.chosen is not None else shape.compact(network.topk)
        for name, value in compact._asdict().items():
            self.register_buffer(name, value.detach().clone())

    def forward(self, images: Tensor) -> PhotographOutput:
        """Scores, maps and boxes of whole photographs.

        Args:
            images: RGB (B, 3, H, W) in [0, 1]; the graph that is exported takes 256 x 256 pixels.
        """
        return inspect(self.network, images, ReferenceShape(self.descriptors, self.context, self.chosen))


class ExportedReference(ExportedDetector):
    """Network, shape and post-processor as one graph.

    Args:
        detector: network and shape.
        post_processor: or None for raw scores.
        box: give the box as a further output, which anomalib's inferencers do not know.
    """

    def __init__(self, detector: ExportableReference, post_processor: nn.Module | None, *, box: bool = False) -> None:
        super().__init__(detector, post_processor)
        self.box = box

    def forward(self, images: Tensor) -> InferenceBatch | BoxedInferenceBatch:
        """Scores of photographs.

        Args:
            images: RGB (B, 3, 256, 256) in [0, 1].
        """
        found = self.model(images)
        prediction = InferenceBatch(pred_score=found.pred_score, anomaly_map=found.anomaly_map)
        if self.post_processor is not None:
            prediction = self.post_processor(prediction)
        return BoxedInferenceBatch(**prediction._asdict(), box=found.box) if self.box else prediction

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/onnx/<name>.onnx``, which takes photographs of 256 x 256 pixels.

        Args:
            export_root: folder that ``weights/onnx`` is made in.
            model_file_name: name without suffix.
            input_size: (256, 256), or None for the same.
            kwargs: of ``torch.onnx.export``.

        Raises:
            ValueError: if another size is asked for.
        """
        return super().to_onnx(export_root, model_file_name, _checked(input_size), **kwargs)

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
            export_root: folder that ``weights/openvino`` is made in.
            model_file_name: name without suffix.
            input_size: (256, 256), or None for the same.
            compression_type: None for single precision, FP16, or INT8: the network's weights have eight bits, not
                the shape.
            kwargs: see anomalib's ``to_openvino``.

        Raises:
            ValueError: if another size or another compression is asked for.
        """
        if compression_type not in {None, CompressionType.FP16, CompressionType.INT8}:
            msg = f"Looking3D's matching needs its digits: take INT8 (weights), FP16 or none, not {compression_type}."
            raise ValueError(msg)
        size = _checked(input_size)
        return super().to_openvino(export_root, model_file_name, size, compression_type, **kwargs)

    def _compress_ov_model(
        self,
        model: Any,
        compression_type: CompressionType | None = None,
        datamodule: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """INT8 compresses the network's weights alone: the shape is a constant too, but OpenVINO cannot run it so."""
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
        """Network and shape as one graph.

        Args:
            reference: folder of rendered views, or empty for the model's.
            box: give the box as a further output, which anomalib's inferencers do not know.

        Raises:
            FileNotFoundError: if there is no view in the folder.
            ValueError: if no folder is given.
        """
        self.eval()
        self.warn_of_random_weights()
        detector = ExportableReference(self.model, self.encode_reference(reference))
        return ExportedReference(detector.cpu(), copy.deepcopy(self.post_processor), box=box).cpu()

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Write network and shape as ``weights/torch/<name>.pt``.

        Args:
            export_root: folder that ``weights/torch`` is made in.
            model_file_name: name without suffix.
        """
        return self.feed_forward().to_torch(export_root, model_file_name)


def _products_with_shape(model: Any) -> list[str]:
    """Names of the products with a shape's constants, which have a batch dimension as no weights do."""
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "MatMul"
        and any(
            value.get_node().get_type_name() == "Constant" and len(value.get_shape()) > 2
            for value in node.input_values()
        )
    ]


def _checked(input_size: tuple[int, int] | None) -> tuple[int, int]:
    """The one size that the network knows."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if input_size is not None and tuple(input_size) != size:
        msg = f"Looking3D takes photographs of {IMAGE_SIZE} x {IMAGE_SIZE} pixels, got input_size {input_size}."
        raise ValueError(msg)
    return size
