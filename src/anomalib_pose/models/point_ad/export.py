# SPDX-License-Identifier: Apache-2.0
"""Export of the scoring of single images as a graph; the host combines scores of images into scores of clouds."""

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType
from torch import Tensor, nn

from anomalib_pose.compare.query_content import is_finite, white_where
from anomalib_pose.data.files import write_json
from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.models.components.export_mixin import FeedForwardExportMixin
from anomalib_pose.models.point_ad.clip_scorers import ClipViewScorer
from anomalib_pose.models.point_ad.scorer import ClipScorer, abnormal_probability


@dataclass(frozen=True)
class Aggregation:
    """Options with which the host combines scores of images into scores of clouds; a .json beside the graph.

    Args:
        smoothing: see ``PointAD``.
        top_fraction: see ``PointAD``.
        fuse_rgb: see ``PointAD``.
        threshold: score above which an object is defective; None without a validation.
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
            ValueError: if the file holds something else.
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


class ExportableImageScorer(nn.Module):
    """Scores images and their patches; the texts are one constant vector.

    Args:
        scorer: scorer with its image tower, which is copied.
        direction: see ``text.direction`` (d,).
    """

    direction: Tensor

    def __init__(self, scorer: ClipScorer, direction: Tensor) -> None:
        super().__init__()
        self.scorer = copy.deepcopy(scorer).cpu().eval().requires_grad_(requires_grad=False)
        self.register_buffer("direction", direction.detach().cpu().clone())

    @property
    def image_size(self) -> int:
        """Side of the images in pixels; the graph does not resize."""
        return self.scorer.vision.image_size

    def forward(self, images: Tensor) -> InferenceBatch:
        """Score images (n,) as ``pred_score`` and their patches (n, p, p) as ``anomaly_map``.

        An image with NaN or infinity has the score 1.

        Args:
            images: RGB (n, 3, image_size, image_size) in [0, 1].
        """
        decided = is_finite(images)
        features = self.scorer.encode(self.scorer.vision.normalize(white_where(~decided, images)))
        score, patches = abnormal_probability(features, self.direction)
        return InferenceBatch(pred_score=torch.where(decided, score, 1.0), anomaly_map=patches)


class ExportedImageScorer(ExportedDetector):
    """Writes the graph as anomalib does, and the options of the host beside it.

    Args:
        graph: scores single images.
        aggregation: options of the host.
        images: batch size of an OpenVINO graph.
    """

    def __init__(self, graph: ExportableImageScorer, aggregation: Aggregation, images: int = 1) -> None:
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
        """Write ``weights/onnx/<name>.onnx``, for any batch size, and ``<name>.json``.

        Args:
            export_root: parent folder of ``weights/onnx``.
            model_file_name: file name without suffix.
            input_size: CLIP's image size, or None for the same.
            kwargs: arguments of ``torch.onnx.export``.

        Raises:
            ValueError: if ``input_size`` is another size.
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
            export_root: parent folder of ``weights/openvino``.
            model_file_name: file name without suffix.
            input_size: CLIP's image size, or None for the same.
            compression_type: None for single precision, FP16, or INT8 for weights in eight bits.
            kwargs: see anomalib's ``to_openvino``.

        Raises:
            ValueError: if ``input_size`` is another size, or the compression has activations in eight bits.
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
        """Return CLIP's size; raise if another one is given."""
        side = self.image_size
        if input_size is not None and tuple(input_size) != (side, side):
            msg = f"This CLIP takes images of {side} x {side} pixels, got input_size {input_size}."
            raise ValueError(msg)
        return side, side


class ImageScorerExportMixin(FeedForwardExportMixin):
    """Export of a model whose ``self.model`` may be a ``ClipViewScorer``."""

    graph_settings = ("images", "category")
    model: Any
    post_processor: Any
    smoothing: float
    top_fraction: float
    fuse_rgb: bool

    def clip_scorer(self) -> ClipViewScorer:
        """Return the scorer of single images.

        Raises:
            ValueError: if scoring is mutual.
        """
        if isinstance(self.model, ClipViewScorer):
            return self.model
        msg = (
            "Mutual scoring compares the views of a whole set of clouds. It has no graph of a single image that "
            "could be called or exported: use --model.scoring prompts or ensemble."
        )
        raise ValueError(msg)

    def feed_forward(self, images: int = 1, category: str = "") -> ExportedImageScorer:
        """Build the graph of single images, with constant texts.

        Args:
            images: batch size of an OpenVINO graph; 1 for anomalib's inferencer, or the number of a cloud's images.
            category: category of the objects, for the ensemble's texts; empty for any object. Learned prompts do not
                name the object.

        Raises:
            ValueError: if scoring is mutual, prompts are not learned, or ``images`` is below 1.
        """
        if images < 1:
            msg = f"images should be 1 or more, got {images}."
            raise ValueError(msg)
        scorer = self.clip_scorer()
        threshold = float(getattr(self.post_processor, "image_threshold", math.nan))
        aggregation = Aggregation(
            self.smoothing, self.top_fraction, self.fuse_rgb, None if math.isnan(threshold) else threshold
        )
        graph = ExportableImageScorer(scorer.scorer, scorer.direction(category))
        return ExportedImageScorer(graph, aggregation, images)

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Write the graph as ``weights/torch/<name>.pt``, which takes images of CLIP's size.

        Args:
            export_root: parent folder of ``weights/torch``.
            model_file_name: file name without suffix.
        """
        return self.feed_forward().to_torch(export_root, model_file_name)
