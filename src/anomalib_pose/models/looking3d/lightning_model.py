# SPDX-License-Identifier: Apache-2.0
"""Looking3D as an anomalib model: training, evaluation, export."""

import logging
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib import metrics as stock
from anomalib.data import Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer, Visualizer
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.data import ViewBatch
from anomalib_pose.data.batches import convert_batch
from anomalib_pose.models.components.metrics import AUROC
from anomalib_pose.models.looking3d.checkpoint import PARTS, load_part, read_checkpoint
from anomalib_pose.models.looking3d.drawing import draw_boxes
from anomalib_pose.models.looking3d.export import ReferenceExportMixin
from anomalib_pose.models.looking3d.losses import Alignment
from anomalib_pose.models.looking3d.metrics import Accuracy, BoxAccuracy, BoxIoU
from anomalib_pose.models.looking3d.photograph import PhotographOutput, inspect, read_photograph
from anomalib_pose.models.looking3d.reference import EncodedShapes
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape, anomaly_map
from anomalib_pose.models.looking3d.training import SCHEDULES, TwoLossTraining
from anomalib_pose.visualization import register_panels

logger = logging.getLogger(__name__)

_THRESHOLD = 0.5  # of probabilities, as the post-processor's


class Looking3D(ReferenceExportMixin, TwoLossTraining, AnomalibModule):
    """Anomalies of a photographed object, given views of the shape it should have (Bhunia et al., CVPR 2024).

    The photograph's pose is not known. Its cells attend to the cells of the reference views that they match, and a
    class token says whether the object deviates from its shape, and where. One network serves all shapes: it is trained
    on pairs of photographs and shapes, and compares with shapes it has never seen. ``configs/paper/`` holds the
    paper's settings; the defaults are ours.

    Args:
        weights_path: published ``model.pt``, or what ``anomalib-pose convert-checkpoint`` made of it; empty for random
            ones.
        reference: shape that photographs without reference views are compared with: a mesh (.glb, .obj, .ply, .stl), or
            a folder of its rendered views.
        mask_dir: folder with a mask of the object for each photograph that is predicted, white on black, of the
            photograph's name but ``.png``; empty if the photographs are transparent or white around the object.
        encoder_weights: file with torchvision's or timm's ``resnet18`` to begin training with; empty for random ones,
            as in the paper.
        query_position: tell the photograph's cells where they are, which helps the box; the paper does not.
        topk: reference cells that each of the photograph's cells attends to; 0 for all.
        image_size: side in pixels that the network shrinks images to: 256 as in the paper, or 128, which takes a
            quarter of the time.
        query_cells: cells of the photograph that attention is computed for, those with most foreground, in place of all
            1024 (256 where images are shrunk): take more than the objects cover. 0 for all, as in the paper.
        learning_rate: of Adam.
        beta1: Adam's share of past gradients; 0 in the paper, whose boxes are learned more slowly on few queries.
        warmup_steps: steps in which the rate grows to that; rates much above the paper's saturate boxes without.
        schedule: ``"cosine"`` to zero over all epochs; ``"step"``: a tenth every 20 epochs, as in the paper.
        momentum: share of the moving averages of encoder and projector that a step keeps; for short trainings less.
        two_steps: one optimizer step for each of the two losses, as in the paper, instead of one for their sum.
        pre_processor: see ``AnomalibModule``. The network normalizes by itself.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.

    Raises:
        FileNotFoundError: if there is no file where weights should be.
        ValueError: if weights do not fit, or the schedule is unknown.
    """

    def __init__(
        self,
        weights_path: str = "",
        reference: str = "",
        mask_dir: str = "",
        encoder_weights: str = "",
        query_position: bool = True,
        topk: int = 100,
        image_size: int = 256,
        query_cells: int = 0,
        learning_rate: float = 2e-5,
        beta1: float = 0.9,
        warmup_steps: int = 0,
        schedule: str = "cosine",
        momentum: float = 0.999,
        two_steps: bool = False,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if schedule not in SCHEDULES:
            msg = f"schedule should be one of {', '.join(map(repr, SCHEDULES))}, got {schedule!r}."
            raise ValueError(msg)
        self.reference = reference
        self.mask_dir = mask_dir
        self.learning_rate = learning_rate
        self.beta1 = beta1
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.automatic_optimization = not two_steps
        self.random_weights = True
        self.model = Looking3DModel(topk, query_position=query_position, image_size=image_size, query_cells=query_cells)
        if encoder_weights:
            self.model.encoder.load_backbone(encoder_weights)
        self.alignment = Alignment(self.model.encoder, self.model.projector, momentum, image_size)
        if weights_path:
            self.load_weights(weights_path)
        # A checkpoint holds the weights: who loads it does not need these files.
        self.hparams.update(weights_path="", encoder_weights="")
        self._shapes = EncodedShapes(self.model)

    def load_weights(self, path: str | Path) -> None:
        """Fill in published or converted weights; moving averages begin where the network is, if the file has none.

        Args:
            path: of the file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it does not hold the weights of this network.
        """
        weights = read_checkpoint(path)
        for part in PARTS:
            load_part(getattr(self.model, part), weights[part], part)
        for part in ("encoder", "projector"):
            name = f"{part}_ema"
            load_part(getattr(self.alignment, name), weights.get(name, weights[part]), name)
        self.random_weights = False

    @property
    def learning_type(self) -> LearningType:
        """It is trained, which is all that anomalib asks by this."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Nothing is validated before it is trained; how long to train is the user's to say."""
        return {"num_sanity_val_steps": 0}

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """No transform: the datamodule crops queries together with their boxes."""
        del image_size
        return PreProcessor()

    def configure_post_processor(self) -> PostProcessor:
        """Scores are probabilities and stay so; the threshold is a half."""
        return PostProcessor(enable_normalization=False)

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """AUROC and accuracy of labels, overlap of boxes over what was detected and over all, AUROC of pixels."""
        boxes = [
            metric(prefix=prefix, strict=False, detected_only=detected)
            for metric in (BoxIoU, BoxAccuracy)
            for prefix, detected in (("detected_", True), ("anomalous_", False))
        ]
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                Accuracy(prefix="image_", strict=False),
                *boxes,
                stock.AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            ]
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """What the network saw of the query with boxes, true mask where there is one, map over the query."""
        register_panels()  # a dotted class path comes here without the plug-in
        return ImageVisualizer(fields=["boxed_query", "gt_mask"], overlay_fields=[("boxed_query", ["anomaly_map"])])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a stock ``ImageBatch`` into a ``ViewBatch``, so that there is room for the box."""
        del dataloader_idx
        return convert_batch(batch, ViewBatch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a checkpoint holds was trained."""
        super().on_load_checkpoint(checkpoint)
        self.random_weights = False

    def warn_of_random_weights(self) -> None:
        """Say that nothing was learned, if so."""
        if self.random_weights:
            logger.warning(
                "Looking3D's weights are random, so its scores mean nothing: give --ckpt_path of a trained model, or "
                "published weights by --model.weights_path."
            )

    def on_validation_start(self) -> None:
        """Forget shapes that were encoded with other weights, and warn if these are random."""
        self._shapes.clear()
        self.warn_of_random_weights()

    def on_test_start(self) -> None:
        """As before a validation."""
        self.on_validation_start()

    def on_predict_start(self) -> None:
        """As before a validation."""
        self.on_validation_start()

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Scores and maps of whole photographs; used by anomalib's inferencers.

        Args:
            batch: RGB (B, 3, H, W) in [0, 1].
            args: not used.
            kwargs: not used.
        """
        del args, kwargs
        with torch.no_grad():
            found = self._inspect(self.pre_processor(batch) if self.pre_processor else batch)
        prediction = InferenceBatch(pred_score=found.pred_score, anomaly_map=found.anomaly_map)
        return self.post_processor(prediction) if self.post_processor else prediction

    def encode_reference(self, reference: str | Path = "") -> ReferenceShape:
        """The shape that photographs without reference views are compared with, by the weights as they are now.

        Args:
            reference: mesh or folder of rendered views, or empty for the model's.

        Raises:
            FileNotFoundError: if there is no such file, or no view in the folder.
            ValueError: if neither is given, or a file cannot be read.
        """
        return self._shapes.encode_file(self._given(reference))

    def _given(self, reference: str | Path) -> str | Path:
        """A reference, or else the model's own."""
        found = reference or self.reference
        if not found:
            msg = (
                "Looking3D compares with views of a shape, and these photographs bring none: give --model.reference, "
                "a mesh or a folder that anomalib-pose render-views wrote."
            )
            raise ValueError(msg)
        return found

    def _inspect(self, images: Tensor) -> PhotographOutput:
        """Whole photographs (B, 3, H, W) against the model's own shape."""
        return inspect(self.model, images, self._shapes.of_file(self._given("")))

    def _step(self, batch: Batch) -> Batch:
        """Scores, maps and boxes of queries with reference views, or of whole photographs without."""
        if getattr(batch, "reference_images", None) is None:
            found = self._inspected(batch)
            return self._told(batch, found)
        names = getattr(batch, "shape_id", None) or [None] * len(batch.image)
        queries = zip(names, batch.reference_images, batch.reference_xyz, strict=True)
        shapes = (self._shapes.of_views(*query) for query in queries)
        each = [self.model(image[None], shape) for image, shape in zip(batch.image, shapes, strict=True)]
        logit, box, residual = (torch.cat(part) for part in zip(*each, strict=True))
        return self._told(batch, PhotographOutput(logit.sigmoid(), anomaly_map(residual), box))

    @staticmethod
    def _told(batch: Batch, found: PhotographOutput) -> Batch:
        """The batch with what was found in it."""
        boxed = draw_boxes(batch.image, found.box, found.pred_score > _THRESHOLD, getattr(batch, "box", None))
        batch.update(pred_score=found.pred_score, anomaly_map=found.anomaly_map, pred_box=found.box, boxed_query=boxed)
        return batch

    def _inspected(self, batch: Batch) -> PhotographOutput:
        """Photographs against the model's own shape, read again from their files, whose transparency a batch lacks."""
        paths = getattr(batch, "image_path", None)
        if paths is None:
            return self._inspect(batch.image)
        size = tuple(batch.image.shape[-2:])
        parts = []
        for path in paths:
            found = self._inspect(read_photograph(path, self.mask_dir)[None].to(self.device))
            parts.append(found._replace(anomaly_map=functional.interpolate(found.anomaly_map, size, mode="bilinear")))
        return PhotographOutput(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)
