# SPDX-License-Identifier: Apache-2.0
"""Lightning side of the scene models: view collection, test-time autograd, batches, metrics and pictures."""

import logging
import time
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from torch import Tensor

from anomalib_pose.compare import FeatureExtractor
from anomalib_pose.data.batches import convert_batch
from anomalib_pose.data.posed.dataclasses import PoseBatch
from anomalib_pose.models.components.autograd import test_time_grad
from anomalib_pose.models.components.checked_model import CheckedModelMixin
from anomalib_pose.models.components.checkpoint_keys import rename_old_keys
from anomalib_pose.models.components.export_mixin import DetectorExportMixin
from anomalib_pose.models.components.fit_run import FitRunMixin
from anomalib_pose.models.components.host_output import quiet_host
from anomalib_pose.models.components.metrics import (
    AUPR,
    AUPRO,
    AUROC,
    DataEvaluator,
    F1Score,
    MedianAngleError,
    MedianCentreError,
    PosesWithinOneDegree,
)
from anomalib_pose.models.components.no_optimizer import NoOptimizer
from anomalib_pose.models.components.photograph_files import replace_stock_loaders
from anomalib_pose.models.components.pose_cache import PoseCache
from anomalib_pose.models.components.query_batches import predict_images, prepare_batch
from anomalib_pose.models.components.query_counts import QueryCountsMixin
from anomalib_pose.models.components.query_visualizer import QueryVisualizer
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.models.components.undecided import decided_scores
from anomalib_pose.models.components.view_collection import ViewCollection
from anomalib_pose.progress import track
from anomalib_pose.visualization import register_panels

logger = logging.getLogger(__name__)


def _autograd_copy(tensor: Tensor | None) -> Tensor | None:
    """Copy a tensor, so that autograd accepts it even if it was created in inference mode."""
    return None if tensor is None else tensor.clone()


class PoseMixin(CheckedModelMixin, QueryCountsMixin, FitRunMixin, DetectorExportMixin):
    """Lightning side of a model that fits a scene to posed views and compares queries with its renderings.

    The model also inherits from anomalib's ``MemoryBankMixin`` and ``AnomalibModule``. It owns a ``SceneDetector`` as
    ``self.model``, and its ``fit_scene`` returns the function that fits the scene.
    """

    data_kind = "posed"
    model: SceneDetector
    device: torch.device
    trainer: Any
    pre_processor: Any
    post_processor: Any
    visualizer: Any
    log: Any
    training: bool
    print: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._poses = PoseCache()

    @property
    def learning_type(self) -> LearningType:
        """The models learn from normal images only."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One epoch collects the views; the fit runs at its end. No parameter is trained, so none is summarized."""
        return {
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "devices": 1,
            "gradient_clip_val": 0,
            "enable_model_summary": False,
        }

    @staticmethod
    def configure_optimizers() -> NoOptimizer:
        """Return an optimizer that changes nothing; the fit of the scene has its own."""
        return NoOptimizer()

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return a pre-processor without a transform: the datamodule resizes image, mask and intrinsics together."""
        del image_size
        return PreProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Return image AUROC, AUPR and F1, pixel AUROC, AUPRO and F1, and pose errors for queries with a true pose."""
        image = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
        pixel = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_", "strict": False}
        pose = {"prefix": "pose_", "strict": False}
        return DataEvaluator(
            test_metrics=[
                AUROC(**image),
                AUPR(**image),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                AUROC(**pixel),
                AUPRO(**pixel),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
                MedianAngleError(**pose),
                MedianCentreError(**pose),
                PosesWithinOneDegree(**pose),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """Show query, rendered reference, true mask if there is one, heat map and predicted mask."""
        register_panels()  # a model named by its dotted class path is built without the plug-in
        return QueryVisualizer(
            fields=["image", "reference", "gt_mask"],
            overlay_fields=[("image", ["anomaly_map"]), ("image", ["pred_mask"])],
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert the batch of any loader to a ``PoseBatch``; outside of training, prepare it as a batch of queries."""
        del dataloader_idx
        return convert_batch(batch, PoseBatch) if self.training else prepare_batch(batch, self.model.query_format)

    def training_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> Tensor:
        """Collect the posed views of one batch.

        Raises:
            ValueError: if the batch has no camera poses.
        """
        del args, kwargs
        poses, intrinsics = getattr(batch, "camera_to_world", None), getattr(batch, "intrinsics", None)
        if poses is None or intrinsics is None:
            msg = (
                f"{type(self).__name__} learns from posed images, but the training batch has no camera poses. "
                "Use a datamodule with poses: MAD, or PosedFolder with a transforms.json."
            )
            raise ValueError(msg)
        self._views.add(batch)
        return torch.tensor(0.0, requires_grad=True, device=batch.image.device)

    def setup(self, stage: str) -> None:
        """Load weights before the run starts, and let an Engine that has fitted another object fit again.

        Args:
            stage: Lightning's name of the stage that starts.
        """
        quiet_host()
        super().setup(stage)
        with self.reported():
            self.model.estimator.load()
        if stage == "predict":
            replace_stock_loaders(self.trainer)
        if stage != "fit":
            return
        self.check_outputs()
        networks = [part for part in self.model.modules() if isinstance(part, FeatureExtractor)]
        with self.reported():
            for network in track(networks, "Load networks"):
                network.load()
        progress = self.trainer.fit_loop.epoch_progress
        if progress.current.processed >= (self.trainer.max_epochs or 1):
            # The Engine keeps its Trainer, whose only epoch is over: without a reset, the fit would return at once.
            progress.reset()

    def on_train_epoch_start(self) -> None:
        """Discard the collected views, so that the same model can be fitted to a second object."""
        self._views = ViewCollection()
        self._is_fitted = torch.tensor([False], device=self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Accept the state-dict names of earlier versions."""
        rename_old_keys(checkpoint)
        super().on_load_checkpoint(checkpoint)

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Score images without intrinsics, for anomalib's inferencers, with the camera of the training views.

        Images of another size are prepared like all queries. Maps have the size of the images.

        Args:
            batch: RGB (B, 3, H, W) in [0, 1].
            args: ignored.
            kwargs: ignored.
        """
        del args, kwargs
        images = self.pre_processor(batch) if self.pre_processor else batch
        with test_time_grad():
            prediction = predict_images(self.model, images)
        scores = decided_scores(prediction, self.post_processor or None)
        batch_scores = InferenceBatch(pred_score=scores, anomaly_map=prediction.anomaly_map)
        return self.post_processor(batch_scores) if self.post_processor else batch_scores

    def _step(self, batch: PoseBatch) -> PoseBatch:
        start, reused = time.perf_counter(), self._poses.reused_seconds
        with test_time_grad(), self._poses.used_by(self.model):
            prediction = self.model(
                batch.image.clone(), _autograd_copy(batch.intrinsics), _autograd_copy(batch.foreground)
            )
        batch.update(**prediction._asdict())
        # the time of a search that a validation has done already counts too: the next query will need it
        seconds = time.perf_counter() - start + (self._poses.reused_seconds - reused)
        self.count_queries(prediction.pose_confidence, seconds)
        return batch

    def _decide(self, batch: PoseBatch) -> PoseBatch:
        """Raise the scores of queries without a verdict; a validation does not, for such scores move the thresholds."""
        batch.update(pred_score=decided_scores(batch, self.post_processor or None, batch.image_path))
        return batch

    def validation_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> PoseBatch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def test_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> PoseBatch:
        """Score one batch of queries."""
        del args, kwargs
        return self._decide(self._step(batch))

    def predict_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> PoseBatch:
        """Score one batch of queries."""
        del args, kwargs
        return self._decide(self._step(batch))
