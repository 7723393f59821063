# SPDX-License-Identifier: Apache-2.0
"""Looking3D as an anomalib model."""

from pathlib import Path
from typing import Any, get_args

from anomalib import LearningType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer, Visualizer
from torch import nn

from anomalib_pose.data import ViewBatch
from anomalib_pose.data.batches import convert_batch
from anomalib_pose.models.components.checked_model import CheckedModelMixin
from anomalib_pose.models.components.metrics import AUROC, DataEvaluator
from anomalib_pose.models.components.photograph_files import is_path_batch, replace_stock_loaders
from anomalib_pose.models.looking3d.checkpoint import PARTS, load_part, read_checkpoint
from anomalib_pose.models.looking3d.export import ReferenceExportMixin
from anomalib_pose.models.looking3d.losses import Alignment
from anomalib_pose.models.looking3d.metrics import Accuracy, BoxAccuracy, BoxIoU
from anomalib_pose.models.looking3d.photograph import read_photographs
from anomalib_pose.models.looking3d.reference import EncodedShapes
from anomalib_pose.models.looking3d.scoring import QueryScoringMixin
from anomalib_pose.models.looking3d.torch_model import Looking3DModel
from anomalib_pose.models.looking3d.training import Schedule, TwoLossTraining
from anomalib_pose.visualization import register_panels


class Looking3D(QueryScoringMixin, ReferenceExportMixin, TwoLossTraining, CheckedModelMixin, AnomalibModule):
    """Anomaly detection in photographs by reference views of the object's shape (Bhunia et al., CVPR 2024).

    The pose of the query image is unknown. Its cells attend to matching cells of the reference views. A class token
    predicts whether the object deviates from its shape, and a box around the deviation. One network serves all shapes:
    it is trained on pairs of photographs and shapes, and applied to unseen shapes. ``configs/paper/`` holds the
    settings of the paper; the defaults differ.

    Args:
        weights_path: published ``model.pt``, or its conversion by ``anomalib-pose convert-checkpoint``; empty for
            random weights.
        reference: shape of photographs that come without reference views: a mesh (.glb, .obj, .ply, .stl), or a folder
            of its rendered views.
        mask_dir: folder with one mask of the object for each photograph at prediction, white on black, with the
            photograph's name; empty if photographs are transparent or white around the object.
        encoder_weights: file with torchvision's or timm's ``resnet18`` as the encoder's initial weights; empty for
            random weights, as in the paper.
        query_position: add position encodings to the query's cells, which improves the box; the paper has none.
        topk: number of reference cells that each query cell attends to; 0 for all.
        image_size: side in pixels of the images in the network: 256 as in the paper, or 128, which takes a quarter of
            the time.
        query_cells: number of query cells in attention, those with most foreground, instead of all 1024 (256 at size
            128). Choose more cells than the objects cover. 0 for all, as in the paper.
        learning_rate: learning rate of Adam.
        beta1: Adam's decay of the gradient mean. The paper uses 0, which learns boxes more slowly on few queries.
        warmup_steps: steps in which the learning rate grows to its full value; without them, learning rates far above
            the paper's saturate the boxes.
        schedule: ``"cosine"`` decays the learning rate to zero over all epochs; ``"step"`` divides it by ten every 20
            epochs, as in the paper.
        momentum: decay of the moving averages of encoder and projector at each step; use a smaller value for a short
            training.
        two_steps: one optimizer step for each of the two losses, as in the paper, instead of one step for their sum.
        pre_processor: see ``AnomalibModule``. The network normalizes by itself.
        post_processor: see ``AnomalibModule``.
        evaluator: see ``AnomalibModule``.
        visualizer: see ``AnomalibModule``.

    Raises:
        FileNotFoundError: if a file of weights does not exist.
        ValueError: if weights do not fit, or the schedule is unknown.
    """

    data_kind = "views"

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
        schedule: Schedule = "cosine",
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
        if schedule not in get_args(Schedule):
            msg = f"schedule should be one of {', '.join(map(repr, get_args(Schedule)))}, got {schedule!r}."
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
        # a checkpoint holds the weights, so that loading it must not need these files
        self.hparams.update(weights_path="", encoder_weights="")
        self._shapes = EncodedShapes(self.model)

    def load_weights(self, path: str | Path) -> None:
        """Load published or converted weights. Moving averages that the file lacks start as copies of the network.

        Args:
            path: file to read.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file does not hold the weights of this network.
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
        """One-class, so that anomalib trains the model."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No validation before training; the number of epochs is left to the user."""
        return {"num_sanity_val_steps": 0}

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return no transform: the data module crops queries together with their boxes."""
        del image_size
        return PreProcessor()

    def configure_post_processor(self) -> PostProcessor:
        """Return a post-processor without normalization: scores are probabilities with threshold 0.5."""
        return PostProcessor(enable_normalization=False)

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return AUROC and accuracy of labels, box metrics over detected and over all anomalies, AUROC of pixels."""
        boxes = [
            metric(prefix=prefix, strict=False, detected_only=detected)
            for metric in (BoxIoU, BoxAccuracy)
            for prefix, detected in (("detected_", True), ("anomalous_", False))
        ]
        return DataEvaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                Accuracy(prefix="image_", strict=False),
                *boxes,
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
            ]
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """Return pictures of the query with boxes, the true mask where there is one, and the map over the query."""
        register_panels()  # a model that is created by its class path may not be registered yet
        return ImageVisualizer(fields=["boxed_query", "gt_mask"], overlay_fields=[("boxed_query", ["anomaly_map"])])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert anomalib's ``ImageBatch``, or paths, to a ``ViewBatch``, which has a field for the box.

        Raises:
            FileNotFoundError: if a photograph does not exist.
            ValueError: if a photograph cannot be read, or photographs of one batch differ in size.
        """
        del dataloader_idx
        return read_photographs(batch) if is_path_batch(batch) else convert_batch(batch, ViewBatch)

    def setup(self, stage: str) -> None:
        """Read photographs of a folder with this package's reader at a prediction.

        Args:
            stage: Lightning's name of the stage that starts.
        """
        super().setup(stage)
        if stage == "predict":
            replace_stock_loaders(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record that the weights are trained: a checkpoint is written after training."""
        super().on_load_checkpoint(checkpoint)
        self.random_weights = False
