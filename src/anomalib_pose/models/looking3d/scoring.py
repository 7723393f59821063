# SPDX-License-Identifier: Apache-2.0
"""Scores of batches: queries with their own reference views, and photographs of one reference shape."""

import logging
from pathlib import Path
from typing import Any

import torch
from anomalib.data import Batch, InferenceBatch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.query_content import has_content, white_where
from anomalib_pose.models.components.run_report import ReportMixin
from anomalib_pose.models.looking3d.box_drawing import draw_boxes
from anomalib_pose.models.looking3d.photograph import PhotographOutput, inspect, read_photograph
from anomalib_pose.models.looking3d.reference import EncodedShapes
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape, anomaly_map

logger = logging.getLogger(__name__)

_THRESHOLD = 0.5
"""Threshold of probabilities, as in the post-processor."""


class QueryScoringMixin(ReportMixin):
    """Evaluation and prediction of a Lightning module that owns a ``Looking3DModel``."""

    model: Looking3DModel
    reference: str
    mask_dir: str
    random_weights: bool
    pre_processor: Any
    post_processor: Any
    device: Any
    _shapes: EncodedShapes

    def warn_of_random_weights(self) -> None:
        """Warn if the weights are neither trained nor loaded."""
        if self.random_weights:
            logger.warning(
                "Looking3D's weights are random, so its scores mean nothing: give --ckpt_path of a trained model, or "
                "published weights by --model.weights_path."
            )

    def on_validation_start(self) -> None:
        """Discard shapes that were encoded with earlier weights, and warn of random weights."""
        self._shapes.clear()
        self.warn_of_random_weights()

    def on_test_start(self) -> None:
        """Prepare as for a validation."""
        self.on_validation_start()

    def on_predict_start(self) -> None:
        """Prepare as for a validation."""
        self.on_validation_start()

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Score whole photographs of the model's reference; anomalib's inferencers call this.

        Args:
            batch: RGB (B, 3, H, W) in [0, 1].
            args: not used.
            kwargs: not used.
        """
        del args, kwargs
        with torch.no_grad():
            output = self._inspect(self.pre_processor(batch) if self.pre_processor else batch)
        prediction = InferenceBatch(pred_score=output.pred_score, anomaly_map=output.anomaly_map)
        return self.post_processor(prediction) if self.post_processor else prediction

    def encode_reference(self, reference: str | Path = "") -> ReferenceShape:
        """Encode the shape that photographs without reference views are compared with, with the current weights.

        Args:
            reference: mesh or folder of rendered views; empty for the model's reference.

        Raises:
            FileNotFoundError: if there is no such file, or no view in the folder.
            ValueError: if there is no reference, or a file cannot be read.
        """
        return self._shapes.encode_file(self._reference_path(reference))

    def _reference_path(self, reference: str | Path = "") -> str | Path:
        """Return the given reference, or the model's reference if it is empty."""
        path = reference or self.reference
        if not path:
            msg = (
                "Looking3D compares photographs with views of a shape, but these photographs have no reference views. "
                "Give --model.reference, a mesh or a folder that anomalib-pose render-views wrote."
            )
            raise ValueError(msg)
        return path

    def _inspect(self, images: Tensor) -> PhotographOutput:
        """Compare whole photographs (B, 3, H, W) with the model's reference."""
        with self.reported():
            shape = self._shapes.of_file(self._reference_path())
        return inspect(self.model, images, shape)

    def _step(self, batch: Batch) -> Batch:
        """Score queries against their reference views, or whole photographs against the model's reference."""
        if getattr(batch, "reference_images", None) is None:
            return self._with_output(batch, self._inspect_files(batch))
        names = getattr(batch, "shape_id", None) or [None] * len(batch.image)
        references = zip(names, batch.reference_images, batch.reference_xyz, strict=True)
        shapes = (self._shapes.of_views(*reference) for reference in references)
        decided = has_content(batch.image)
        queries = white_where(~decided, batch.image)
        outputs = [self.model(query[None], shape) for query, shape in zip(queries, shapes, strict=True)]
        logit, box, residual = (torch.cat(part) for part in zip(*outputs, strict=True))
        return self._with_output(
            batch, PhotographOutput(torch.where(decided, logit.sigmoid(), 1.0), anomaly_map(residual), box)
        )

    @staticmethod
    def _with_output(batch: Batch, output: PhotographOutput) -> Batch:
        """Add scores, maps, boxes and pictures to a batch."""
        boxed = draw_boxes(batch.image, output.box, output.pred_score > _THRESHOLD, getattr(batch, "box", None))
        batch.update(
            pred_score=output.pred_score, anomaly_map=output.anomaly_map, pred_box=output.box, boxed_query=boxed
        )
        return batch

    def _inspect_files(self, batch: Batch) -> PhotographOutput:
        """Compare photographs with the model's reference; read them again, as the batch lacks their transparency."""
        paths = getattr(batch, "image_path", None)
        if paths is None:
            return self._inspect(batch.image)
        size = tuple(batch.image.shape[-2:])
        outputs = []
        for path in paths:
            output = self._inspect(read_photograph(path, self.mask_dir)[None].to(self.device))
            resized_map = functional.interpolate(output.anomaly_map, size, mode="bilinear")
            outputs.append(output._replace(anomaly_map=resized_map))
        return PhotographOutput(*(torch.cat(part) for part in zip(*outputs, strict=True)))

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of queries or photographs."""
        del args, kwargs
        return self._step(batch)
