# SPDX-License-Identifier: Apache-2.0
"""What every scene model shares: collecting posed views, autograd at test time, batches, metrics, pictures."""

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
from anomalib_pose.data.posed.dataclasses import PoseBatch, widened
from anomalib_pose.geometry import Camera
from anomalib_pose.models.components.checkpoint_keys import rename_old_keys
from anomalib_pose.models.components.export_mixin import DetectorExportMixin
from anomalib_pose.models.components.metrics import (
    AUPR,
    AUROC,
    F1Score,
    MedianAngleError,
    MedianCentreError,
    PosesWithinOneDegree,
)
from anomalib_pose.models.components.scene_detector import FitScene, SceneDetector
from anomalib_pose.visualization import register_panels

logger = logging.getLogger(__name__)

MODEL_KEY = "anomalib_pose_model"
"""Where a checkpoint has the name of its model's class."""


@contextmanager
def test_time_grad() -> Iterator[None]:
    """Autograd inside any Lightning loop, whichever of no_grad and inference mode the loop runs under."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def _normal(tensor: Tensor | None) -> Tensor | None:
    """A copy that autograd accepts, of a tensor that may have been made under inference mode."""
    return None if tensor is None else tensor.clone()


class PoseMixin(DetectorExportMixin):
    """Lightning side of a model that fits an object from posed views and compares queries with its renderings.

    The class that mixes it in inherits from anomalib's ``MemoryBankMixin`` and ``AnomalibModule`` too, owns a
    ``SceneDetector`` as ``self.model`` and says with ``fit_scene`` how the scene is fitted.
    """

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
        self._doubtful = 0

    @property
    def learning_type(self) -> LearningType:
        """One good object is learned."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the views collects them; the fitting itself runs at the end of that pass."""
        return {"max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1, "gradient_clip_val": 0}

    @staticmethod
    def configure_optimizers() -> None:
        """The scene brings its own optimizer."""

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """No transform: image, mask and intrinsics may only be resized together, which the datamodule does."""
        del image_size
        return PreProcessor()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Image AUROC, AUPR and F1, pixel AUROC, AUPRO and F1, and the pose error where the truth is known."""
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
        """Query, rendered reference, true mask where there is one, heat map, predicted mask."""
        register_panels()  # a dotted class path comes here without the plug-in
        return ImageVisualizer(
            fields=["image", "reference", "gt_mask"],
            overlay_fields=[("image", ["anomaly_map"]), ("image", ["pred_mask"])],
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn a stock ``ImageBatch`` into a ``PoseBatch``, so that there is room for the reference and the pose."""
        del dataloader_idx
        return widened(batch, PoseBatch)

    def training_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> Tensor:
        """Collect the posed views of one batch.

        Raises:
            ValueError: if the batch has no poses.
        """
        del args, kwargs
        poses, intrinsics = getattr(batch, "camera_to_world", None), getattr(batch, "intrinsics", None)
        if poses is None or intrinsics is None:
            msg = (
                f"{type(self).__name__} learns from posed images, but the training batch has no camera poses. "
                "Use a datamodule that brings them: MAD, or PosedFolder with a transforms.json."
            )
            raise ValueError(msg)
        with torch.inference_mode(mode=False):
            for i, image in enumerate(batch.image):
                foreground = None if batch.foreground is None else batch.foreground[i].detach().cpu().clone()
                view = (image.detach().cpu().clone(), poses[i].cpu().clone(), intrinsics[i].cpu().clone())
                self._views.append((*view, foreground))
        return torch.tensor(0.0, requires_grad=True, device=batch.image.device)

    def setup(self, stage: str) -> None:
        """Look for weights before anything is done, and let an Engine that has fitted another object fit again.

        Args:
            stage: Lightning's name of what begins.
        """
        self.model.estimator.load()
        if stage != "fit":
            return
        for part in self.model.modules():
            if isinstance(part, FeatureExtractor):
                part.load()
        progress = self.trainer.fit_loop.epoch_progress
        if progress.current.processed >= (self.trainer.max_epochs or 1):
            # The Engine keeps its Trainer, whose one epoch is over; it would return without a look at the data.
            progress.reset()

    def on_train_epoch_start(self) -> None:
        """Begin with no views, so that the same model can be fitted to a second object."""
        self._views = []
        self._is_fitted = torch.tensor([False], device=self.device)

    def fit(self) -> None:
        """Fit the object to the collected views and forget them; what was found is logged in one line.

        Raises:
            ValueError: if no views were collected, or their sizes differ.
        """
        if not self._views:
            msg = f"{type(self).__name__} has seen no training views: train it first, or give a checkpoint."
            raise ValueError(msg)
        # The loader shuffles; the fit must not depend on that order.
        self._views.sort(key=lambda view: tuple(view[1].flatten().tolist()))
        images, poses, intrinsics, foregrounds = zip(*self._views, strict=True)
        sizes = sorted({tuple(image.shape[-2:]) for image in images})
        if len(sizes) > 1:
            msg = f"All training views should have one size, got (height, width) {sizes}: set the data's image_size."
            raise ValueError(msg)
        known = [mask.to(self.device) for mask in foregrounds if mask is not None]
        with test_time_grad():
            cameras = Camera(torch.stack(poses), torch.stack(intrinsics), sizes[0][1], sizes[0][0]).to(self.device)
            foreground = torch.stack(known) if len(known) == len(images) else None
            self.model.fit(torch.stack(images).to(self.device), cameras, foreground, self.fit_scene())
        self._views = []
        logger.info(
            "Fitted %d views: PSNR %.2f dB on held-out views, %d views in the bank.",
            len(images), float(self.model.psnr), len(self.model.bank),
        )  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the model, so that a checkpoint can be loaded by its path alone."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint[MODEL_KEY] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Accept the state-dict names of earlier versions."""
        rename_old_keys(checkpoint)
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]

    @property
    def shows_progress(self) -> bool:
        """Whether the trainer shows progress bars, so that the fit may show its own."""
        return getattr(self.trainer, "progress_bar_callback", None) is not None

    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Scores and maps of images alone, with the training views' intrinsics; used by anomalib's inferencers.

        Args:
            batch: RGB (B, 3, H, W) in [0, 1].
            args: not used.
            kwargs: not used.
        """
        del args, kwargs
        images = self.pre_processor(batch) if self.pre_processor else batch
        with test_time_grad():
            found = self.model(images.clone())
        prediction = InferenceBatch(pred_score=found.pred_score, anomaly_map=found.anomaly_map)
        return self.post_processor(prediction) if self.post_processor else prediction

    def _step(self, batch: PoseBatch) -> PoseBatch:
        start = time.perf_counter()
        with test_time_grad():
            prediction = self.model(batch.image.clone(), _normal(batch.intrinsics), _normal(batch.foreground))
        batch.update(**prediction._asdict())
        self._seconds += time.perf_counter() - start
        self._queries += len(batch.image)
        self._doubtful += int((prediction.pose_confidence < self.model.estimator.retry_below).sum())
        return batch

    def validation_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> PoseBatch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def test_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> PoseBatch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def predict_step(self, batch: PoseBatch, *args: Any, **kwargs: Any) -> PoseBatch:
        """Score one batch of queries."""
        del args, kwargs
        return self._step(batch)

    def on_test_start(self) -> None:
        """Begin the count of queries and their time."""
        self._seconds, self._queries, self._doubtful = 0.0, 0, 0

    def on_predict_start(self) -> None:
        """Begin the count of queries and their time."""
        self.on_test_start()

    def on_test_epoch_end(self) -> None:
        """Log the seconds a query took, pose search and comparison included."""
        if self._queries:
            self.log("seconds_per_query", self._seconds / self._queries)
        self._log_doubtful()

    def on_predict_epoch_end(self) -> None:
        """Say how many cameras are doubtful."""
        self._log_doubtful()

    def _log_doubtful(self) -> None:
        if self._doubtful:
            path = (
                "compared with their rendering alone"
                if self.model.comparison.memory is None
                else "held against the memory too"
            )
            logger.warning("The cameras of %d of %d queries are doubtful: %s.", self._doubtful, self._queries, path)

    def on_test_end(self) -> None:
        """Say where the pictures lie."""
        if self.visualizer is not None:
            folder = Path(self.visualizer.output_dir or Path(self.trainer.default_root_dir) / "images")
            self.print(f"Pictures (query | reference | mask | heat map | predicted mask): {folder}")
