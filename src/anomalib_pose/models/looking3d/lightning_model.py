# SPDX-License-Identifier: Apache-2.0
"""Looking3D as an anomalib model: training, evaluation, export."""

from collections import OrderedDict
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
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from anomalib_pose.data import ViewBatch
from anomalib_pose.data.dataclasses import widened
from anomalib_pose.data.queries import read_query
from anomalib_pose.models.components.metrics import AUROC
from anomalib_pose.models.looking3d.checkpoint import PARTS, load_part, read_checkpoint
from anomalib_pose.models.looking3d.drawing import draw_boxes
from anomalib_pose.models.looking3d.export import ReferenceExportMixin
from anomalib_pose.models.looking3d.losses import Alignment, task_loss
from anomalib_pose.models.looking3d.metrics import Accuracy, BoxAccuracy, BoxIoU
from anomalib_pose.models.looking3d.photograph import PhotographOutput, inspect
from anomalib_pose.models.looking3d.reference import load_reference
from anomalib_pose.models.looking3d.torch_model import Looking3DModel, ReferenceShape, anomaly_map, normalise
from anomalib_pose.visualization import register_panels

SCHEDULES = ("cosine", "step")
_KEPT_SHAPES = 8
_THRESHOLD = 0.5  # of probabilities, as the post-processor's


class Looking3D(ReferenceExportMixin, AnomalibModule):
    """Anomalies of a photographed object, given views of the shape it should have (Bhunia et al., CVPR 2024).

    The photograph's pose is not known. Its cells attend to the cells of the reference views that they match, and a
    class token says whether the object deviates from its shape, and where. One network serves all shapes: it is trained
    on pairs of photographs and shapes, and compares with shapes it has never seen. ``configs/paper/`` holds the
    paper's settings; the defaults are ours.

    Args:
        weights_path: published ``model.pt``, or what ``tools/convert_checkpoint.py`` made of it; empty for random ones.
        reference: shape that photographs without reference views are compared with: a mesh (.glb, .obj, .ply, .stl), or
            a folder of its rendered views.
        encoder_weights: file with torchvision's or timm's ``resnet18`` to begin training with; empty for random ones,
            as in the paper.
        query_position: tell the photograph's cells where they are, which helps the box; the paper does not.
        topk: reference cells that each of the photograph's cells attends to; 0 for all.
        learning_rate: of Adam.
        schedule: ``"cosine"`` to zero over all epochs; ``"step"``: a tenth every 20 epochs, as in the paper.
        two_steps: one optimiser step for each of the two losses, as in the paper, instead of one for their sum.
        pre_processor: see ``AnomalibModule``. The network normalises by itself.
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
        encoder_weights: str = "",
        query_position: bool = True,
        topk: int = 100,
        learning_rate: float = 2e-5,
        schedule: str = "cosine",
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
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.automatic_optimization = not two_steps
        self.model = Looking3DModel(topk, query_position=query_position)
        if encoder_weights:
            self.model.encoder.load_backbone(encoder_weights)
        self.alignment = Alignment(self.model.encoder, self.model.projector)
        if weights_path:
            self.load_weights(weights_path)
        # A checkpoint holds the weights: who loads it does not need these files.
        self.hparams.update(weights_path="", encoder_weights="")
        self._shapes: OrderedDict[str, ReferenceShape] = OrderedDict()

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
        return widened(batch, ViewBatch)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        """Adam with the paper's settings, and the schedule.

        Raises:
            ValueError: if the cosine's end is not known.
        """
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = Adam(parameters, lr=self.learning_rate, betas=(0.0, 0.999))
        if self.schedule == "step":
            return [optimizer], [StepLR(optimizer, 20, 0.1)]
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            msg = f"The cosine schedule ends with the training: set max_epochs to 1 or more, it is {epochs}."
            raise ValueError(msg)
        return [optimizer], [CosineAnnealingLR(optimizer, epochs)]

    def alignment_loss(self, batch: Batch) -> Tensor:
        """Loss of the descriptors, after the averages have followed.

        Args:
            batch: with ``image``, ``pair_images`` and ``pair_points``.
        """
        network = self.model
        self.alignment.update(network.encoder, network.projector)
        return self.alignment(
            network.encoder, network.projector, batch.image, batch.pair_images, batch.pair_points.long()
        )

    def task_loss(self, batch: Batch) -> Tensor:
        """Loss of labels and boxes. Queries and views are encoded at once, so they share the batches' statistics.

        Args:
            batch: with ``image``, ``reference_images``, ``reference_xyz``, ``gt_label`` and ``box``.
        """
        views = batch.reference_images
        features = self.model.encoder(normalise(torch.cat([batch.image, views.flatten(0, 1)])))
        query, others = features.split([len(batch.image), views.shape[0] * views.shape[1]])
        shape = self.model.reference(views, batch.reference_xyz, others.unflatten(0, views.shape[:2]))
        found = self.model(batch.image, shape, query)
        return task_loss(found.logit, found.box, batch.gt_label, batch.box)

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Tensor | None:
        """Both losses of a batch: their sum, or a step of the optimiser for each."""
        del args, kwargs
        if self.automatic_optimization:
            losses = {"alignment": self.alignment_loss(batch), "task": self.task_loss(batch)}
            self._log_losses(losses)
            return losses["alignment"] + losses["task"]
        optimizer = self.optimizers()
        for name, loss_of in (("alignment", self.alignment_loss), ("task", self.task_loss)):
            optimizer.zero_grad()
            loss = loss_of(batch)
            self.manual_backward(loss)
            optimizer.step()
            self._log_losses({name: loss})
        return None

    def _log_losses(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            self.log(f"train_{name}_loss", loss.detach(), on_epoch=True, prog_bar=True)

    def on_train_epoch_end(self) -> None:
        """Step the schedule where Lightning leaves that to the model."""
        if not self.automatic_optimization:
            self.lr_schedulers().step()

    def on_validation_start(self) -> None:
        """Forget shapes that were encoded with other weights."""
        self._shapes.clear()

    def on_test_start(self) -> None:
        """Forget shapes that were encoded with other weights."""
        self._shapes.clear()

    def on_predict_start(self) -> None:
        """Forget shapes that were encoded with other weights."""
        self._shapes.clear()

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Scores and maps of whole photographs; used by anomalib's inferencers.

        Args:
            batch: RGB (B, 3, H, W) in [0, 1].
            args: not used.
            kwargs: not used.
        """
        del args, kwargs
        with torch.no_grad():
            found = inspect(self.model, self.pre_processor(batch) if self.pre_processor else batch, self._own())
        prediction = InferenceBatch(pred_score=found.pred_score, anomaly_map=found.anomaly_map)
        return self.post_processor(prediction) if self.post_processor else prediction

    def _encode(self, views: Tensor, xyz: Tensor) -> ReferenceShape:
        """One compact shape, its views encoded one after the other: more at once would not be faster on a CPU."""
        device = self.device
        with torch.no_grad():
            encoder = self.model.encoder
            features = torch.cat([encoder(normalise(view[None].to(device))) for view in views])
            whole = self.model.reference(views[None].to(device), xyz[None].to(device), features[None])
        return whole.compact(self.model.topk)

    def encode_reference(self, reference: str | Path = "") -> ReferenceShape:
        """The shape that photographs without reference views are compared with.

        Args:
            reference: mesh or folder of rendered views, or empty for the model's.

        Raises:
            FileNotFoundError: if there is no such file, or no view in the folder.
            ValueError: if neither is given, or a file cannot be read.
        """
        reference = reference or self.reference
        if not reference:
            msg = (
                "Looking3D compares with views of a shape, and these photographs bring none: give --model.reference, "
                "a mesh or a folder that tools/render_views.py wrote."
            )
            raise ValueError(msg)
        return self._encode(*load_reference(reference))

    def _kept(self, name: str | None, batch: Batch, index: int) -> ReferenceShape:
        """Shape of one query, encoded once for the queries that name it."""
        if name is not None and name in self._shapes:
            self._shapes.move_to_end(name)
            return self._shapes[name]
        shape = self._encode(batch.reference_images[index], batch.reference_xyz[index])
        if name is not None:
            self._shapes[name] = shape
            if len(self._shapes) > _KEPT_SHAPES:
                self._shapes.popitem(last=False)
        return shape

    def _own(self) -> ReferenceShape:
        """The model's own shape, encoded once."""
        if "" not in self._shapes:
            self._shapes[""] = self.encode_reference()
        return self._shapes[""]

    def _step(self, batch: Batch) -> Batch:
        """Scores, maps and boxes of queries with reference views, or of whole photographs without."""
        if getattr(batch, "reference_images", None) is None:
            found = self._inspected(batch)
            return self._told(batch, found)
        names = getattr(batch, "shape_id", None) or [None] * len(batch.image)
        each = [
            self.model(image[None], self._kept(name, batch, index))
            for index, (image, name) in enumerate(zip(batch.image, names, strict=True))
        ]
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
            return inspect(self.model, batch.image, self._own())
        size = tuple(batch.image.shape[-2:])
        parts = []
        for path in paths:
            found = inspect(self.model, read_query(path)[None].to(self.device), self._own())
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
