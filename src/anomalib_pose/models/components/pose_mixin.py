# SPDX-License-Identifier: Apache-2.0
"""Lightning side of the scene models: view collection, test-time autograd, batches, metrics and pictures."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib import metrics as stock
from anomalib.data import InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import ImageVisualizer
from torch import Tensor

from anomalib_pose.compare import FeatureExtractor
from anomalib_pose.data.batches import convert_batch
from anomalib_pose.data.posed.dataclasses import PoseBatch
from anomalib_pose.geometry import Camera
from anomalib_pose.models.components.checked_model import CheckedModelMixin
from anomalib_pose.models.components.checkpoint_keys import rename_old_keys
from anomalib_pose.models.components.export_mixin import DetectorExportMixin
from anomalib_pose.models.components.host_output import quiet_host
from anomalib_pose.models.components.metrics import (
    AUPR,
    AUROC,
    F1Score,
    MedianAngleError,
    MedianCentreError,
    PosesWithinOneDegree,
)
from anomalib_pose.models.components.no_optimizer import NoOptimizer
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.models.components.scene_fit import FitScene
from anomalib_pose.models.components.undecided import decided_scores
from anomalib_pose.visualization import register_panels

logger = logging.getLogger(__name__)


@contextmanager
def test_time_grad() -> Iterator[None]:
    """Enable autograd inside any Lightning loop, whether the loop runs under ``no_grad`` or inference mode."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def _autograd_copy(tensor: Tensor | None) -> Tensor | None:
    """Copy a tensor, so that autograd accepts it even if it was created in inference mode."""
    return None if tensor is None else tensor.clone()


class PoseMixin(CheckedModelMixin, DetectorExportMixin):
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
    print: Any

    fit_scene: Callable[[], FitScene]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._views: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        self._seconds = 0.0
        self._queries = 0
        self._low_confidence = 0

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
        return Evaluator(
            test_metrics=[
                AUROC(**image),
                AUPR(**image),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                stock.AUROC(**pixel),
                stock.AUPRO(**pixel),
                stock.F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
                MedianAngleError(**pose),
                MedianCentreError(**pose),
                PosesWithinOneDegree(**pose),
            ],
        )

    @classmethod
    def configure_visualizer(cls) -> ImageVisualizer:
        """Show query, rendered reference, true mask if there is one, heat map and predicted mask."""
        register_panels()  # a model named by its dotted class path is built without the plug-in
        return ImageVisualizer(
            fields=["image", "reference", "gt_mask"],
            overlay_fields=[("image", ["anomaly_map"]), ("image", ["pred_mask"])],
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Convert a stock ``ImageBatch`` to a ``PoseBatch``, which has fields for the reference and the pose."""
        del dataloader_idx
        return convert_batch(batch, PoseBatch)

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
        with torch.inference_mode(mode=False):
            for i, image in enumerate(batch.image):
                foreground = None if batch.foreground is None else batch.foreground[i].detach().cpu().clone()
                view = (image.detach().cpu().clone(), poses[i].cpu().clone(), intrinsics[i].cpu().clone())
                self._views.append((*view, foreground))
        return torch.tensor(0.0, requires_grad=True, device=batch.image.device)

    def setup(self, stage: str) -> None:
        """Load weights before the run starts, and let an Engine that has fitted another object fit again.

        Args:
            stage: Lightning's name of the stage that starts.
        """
        quiet_host()
        super().setup(stage)
        self.model.estimator.load()
        if stage != "fit":
            return
        for part in self.model.modules():
            if isinstance(part, FeatureExtractor):
                part.load()
        progress = self.trainer.fit_loop.epoch_progress
        if progress.current.processed >= (self.trainer.max_epochs or 1):
            # The Engine keeps its Trainer, whose only epoch is over: without a reset, the fit would return at once.
            progress.reset()

    def on_train_epoch_start(self) -> None:
        """Discard the collected views, so that the same model can be fitted to a second object."""
        self._views = []
        self._is_fitted = torch.tensor([False], device=self.device)

    def fit(self) -> None:
        """Fit the scene to the collected views, then discard them.

        Raises:
            ValueError: if there are no views, or their sizes differ.
        """
        if not self._views:
            msg = f"{type(self).__name__} has no training views: train it first, or give a checkpoint."
            raise ValueError(msg)
        # The loader shuffles; the fit must not depend on that order.
        self._views.sort(key=lambda view: tuple(view[1].flatten().tolist()))
        images, poses, intrinsics, foregrounds = zip(*self._views, strict=True)
        sizes = sorted({tuple(image.shape[-2:]) for image in images})
        if len(sizes) > 1:
            msg = f"All training views should have one size, got (height, width) {sizes}: set image_size of the data."
            raise ValueError(msg)
        masks = [mask.to(self.device) for mask in foregrounds if mask is not None]
        with test_time_grad():
            cameras = Camera(torch.stack(poses), torch.stack(intrinsics), sizes[0][1], sizes[0][0]).to(self.device)
            foreground = torch.stack(masks) if len(masks) == len(images) else None
            self.model.fit(torch.stack(images).to(self.device), cameras, foreground, self.fit_scene())
        self._views = []
        logger.info("The view bank of the pose search has %d views.", len(self.model.bank))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Accept the state-dict names of earlier versions."""
        rename_old_keys(checkpoint)
        super().on_load_checkpoint(checkpoint)

    @property
    def shows_progress(self) -> bool:
        """Whether the trainer shows progress bars; the fit then shows one too."""
        return getattr(self.trainer, "progress_bar_callback", None) is not None

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Score images without intrinsics, for anomalib's inferencers, with the intrinsics of the training views.

        Args:
            batch: RGB (B, 3, H, W) in [0, 1].
            args: ignored.
            kwargs: ignored.
        """
        del args, kwargs
        images = self.pre_processor(batch) if self.pre_processor else batch
        with test_time_grad():
            prediction = self.model(images.clone())
        scores = decided_scores(prediction, self.post_processor or None)
        batch_scores = InferenceBatch(pred_score=scores, anomaly_map=prediction.anomaly_map)
        return self.post_processor(batch_scores) if self.post_processor else batch_scores

    def _step(self, batch: PoseBatch) -> PoseBatch:
        start = time.perf_counter()
        with test_time_grad():
            prediction = self.model(
                batch.image.clone(), _autograd_copy(batch.intrinsics), _autograd_copy(batch.foreground)
            )
        batch.update(**prediction._asdict())
        self._seconds += time.perf_counter() - start
        self._queries += len(batch.image)
        self._low_confidence += int((prediction.pose_confidence < self.model.estimator.retry_below).sum())
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

    def on_test_start(self) -> None:
        """Reset the counts of queries, low-confidence queries and seconds."""
        self._seconds, self._queries, self._low_confidence = 0.0, 0, 0

    def on_predict_start(self) -> None:
        """Reset the counts of queries, low-confidence queries and seconds."""
        self.on_test_start()

    def on_test_epoch_end(self) -> None:
        """Log the seconds per query, for pose estimation and comparison, and the number of low-confidence queries."""
        if self._queries:
            self.log("seconds_per_query", self._seconds / self._queries)
        self._log_low_confidence()

    def on_predict_epoch_end(self) -> None:
        """Log the number of low-confidence queries."""
        self._log_low_confidence()

    def _log_low_confidence(self) -> None:
        if self._low_confidence:
            memory = self.model.comparison.memory
            compared = "their reference alone" if memory is None else "their reference and the patch memory"
            logger.warning(
                "%d of %d queries have a low-confidence camera and are compared with %s.",
                self._low_confidence, self._queries, compared,
            )  # fmt: skip

    def on_test_end(self) -> None:
        """Print the folder of the pictures."""
        if self.visualizer is not None:
            folder = Path(self.visualizer.output_dir or Path(self.trainer.default_root_dir) / "images")
            self.print(f"Pictures (query | reference | mask | heat map | predicted mask): {folder}")
