# SPDX-License-Identifier: Apache-2.0
"""The part of PointAD that sees one image at a time, as a graph: what is left for the host is the mean over points."""

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType
from torch import Tensor, nn

from anomalib_pose.data.files import write_json
from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.models.components.export_mixin import FeedForwardExportMixin
from anomalib_pose.models.point_ad.clip_scorers import ClipViewScorer
from anomalib_pose.models.point_ad.scorer import ClipScorer, abnormality


@dataclass(frozen=True)
class Aggregation:
    """How the host makes scores of clouds from those of images; a .json beside the exported graph holds it.

    Args:
        smoothing: see ``PointAD``.
        top_fraction: see ``PointAD``.
        fuse_rgb: see ``PointAD``.
        threshold: score above which an object is defective, or None if nothing was validated.
    """

    smoothing: float
    top_fraction: float
    fuse_rgb: bool
    threshold: float | None

    def write(self, model: Path) -> None:
        """Write the file.

        Args:
            model: exported graph that it belongs to.
        """
        write_json(model.with_suffix(".json"), asdict(self))

    @classmethod
    def read(cls, model: Path) -> "Aggregation":
        """Read the file.

        Args:
            model: exported graph that it belongs to.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else.
        """
        path = model.with_suffix(".json")
        if not path.is_file():
            msg = f"Expected {path} beside {model}, as `anomalib export --model PointAD` writes it: copy it along."
            raise FileNotFoundError(msg)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            msg = f"{path} should hold {', '.join(cls.__dataclass_fields__)}, but: {error}."
            raise ValueError(msg) from error


class ViewGraph(nn.Module):
    """Images in, scores and maps of their patches out; the texts are one constant vector.

    Args:
        scorer: with its image tower; copied.
        direction: see ``text.direction`` (d,).
    """

    direction: Tensor

    def __init__(self, scorer: ClipScorer, direction: Tensor) -> None:
        super().__init__()
        self.scorer = copy.deepcopy(scorer).cpu().eval().requires_grad_(requires_grad=False)
        self.register_buffer("direction", direction.detach().cpu().clone())

    @property
    def image_size(self) -> int:
        """Side in pixels of the images, which this graph does not resize."""
        return self.scorer.vision.image_size

    def forward(self, images: Tensor) -> InferenceBatch:
        """How abnormal images (n,) and their patches (n, p, p) are, as ``pred_score`` and ``anomaly_map``.

        Args:
            images: RGB (n, 3, image_size, image_size) in [0, 1].
        """
        score, patches = abnormality(self.scorer.encode(self.scorer.vision.normalize(images)), self.direction)
        return InferenceBatch(pred_score=score, anomaly_map=patches)


class ExportedViews(ExportedDetector):
    """The graph as anomalib exports it, and beside it what the host needs to know.

    Args:
        graph: of single images.
        aggregation: for the host.
        images: images that an OpenVINO graph takes at once.
    """

    def __init__(self, graph: ViewGraph, aggregation: Aggregation, images: int = 1) -> None:
        super().__init__(graph, None)
        self.aggregation = aggregation
        self.images = images
        self.image_size = graph.image_size

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/onnx/<name>.onnx``, which takes any number of images, and ``<name>.json``.

        Args:
            export_root: folder that ``weights/onnx`` is made in.
            model_file_name: name without suffix.
            input_size: CLIP's, or None for the same.
            kwargs: of ``torch.onnx.export``.

        Raises:
            ValueError: if another size is asked for.
        """
        path = super().to_onnx(export_root, model_file_name, self._checked(input_size), **kwargs)
        self.aggregation.write(path)
        return path

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write ``weights/openvino/<name>.xml``, ``.bin`` and ``.json``.

        Args:
            export_root: folder that ``weights/openvino`` is made in.
            model_file_name: name without suffix.
            input_size: CLIP's, or None for the same.
            compression_type: None for single precision, FP16, or INT8 for weights in eight bits.
            kwargs: see anomalib's ``to_openvino``.

        Raises:
            ValueError: if another size is asked for, or activations in eight bits.
        """
        if compression_type not in {None, CompressionType.FP16, CompressionType.INT8}:
            msg = f"CLIP's activations need more than eight bits: use FP16 or INT8 (weights), got {compression_type}."
            raise ValueError(msg)
        size = self._checked(input_size)
        kwargs["ov_kwargs"] = {"input": [self.images, 3, *size], **(kwargs.get("ov_kwargs") or {})}
        path = super().to_openvino(export_root, model_file_name, size, compression_type, **kwargs)
        self.aggregation.write(path)
        return path

    def _checked(self, input_size: tuple[int, int] | None) -> tuple[int, int]:
        """The one size that the graph knows."""
        side = self.image_size
        if input_size is not None and tuple(input_size) != (side, side):
            msg = f"This CLIP takes images of {side} x {side} pixels, got input_size {input_size}."
            raise ValueError(msg)
        return side, side


class ViewExportMixin(FeedForwardExportMixin):
    """Export of a model whose ``self.model`` may be a ``ClipViewScorer``."""

    graph_settings = ("images", "category")
    model: Any
    post_processor: Any
    smoothing: float
    top_fraction: float
    fuse_rgb: bool

    def clip_scorer(self) -> ClipViewScorer:
        """What scores single images.

        Raises:
            ValueError: for mutual scoring.
        """
        if isinstance(self.model, ClipViewScorer):
            return self.model
        msg = (
            "Mutual scoring compares the views of a whole set of clouds: there is no graph of a single image that "
            "could be called or exported."
        )
        raise ValueError(msg)

    def feed_forward(self, images: int = 1, category: str = "") -> ExportedViews:
        """The graph of single images, texts baked in.

        Args:
            images: images that an OpenVINO graph takes at once; 1 for anomalib's inferencer, or all of a cloud's.
            category: kind of object that the ensemble's texts name; empty for any. Learned prompts name none.

        Raises:
            ValueError: for mutual scoring, if prompts are not learned, or there are no images.
        """
        if images < 1:
            msg = f"images should be 1 or more, got {images}."
            raise ValueError(msg)
        scorer = self.clip_scorer()
        threshold = float(getattr(self.post_processor, "image_threshold", math.nan))
        aggregation = Aggregation(
            self.smoothing, self.top_fraction, self.fuse_rgb, None if math.isnan(threshold) else threshold
        )
        return ExportedViews(ViewGraph(scorer.scorer, scorer.direction(category)), aggregation, images)

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Write the graph as ``weights/torch/<name>.pt``, which takes images of CLIP's size.

        Args:
            export_root: folder that ``weights/torch`` is made in.
            model_file_name: name without suffix.
        """
        return self.feed_forward().to_torch(export_root, model_file_name)
