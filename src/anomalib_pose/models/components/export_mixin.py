# SPDX-License-Identifier: Apache-2.0
"""Export of a fitted scene model as a feed-forward detector."""

import copy
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from anomalib.data import AnomalibDataModule
from rich.progress import track
from torch import Tensor

from anomalib_pose.compare import Comparator
from anomalib_pose.compare.synthetic_defects import add_synthetic_defects
from anomalib_pose.deploy import (
    DetectorSettings,
    ExportedDetector,
    FeedForwardDetector,
    build_detector,
    rasterized_scene,
)
from anomalib_pose.deploy.thresholds import ScoreLine, ScoreMap, calibrate_thresholds, transfer_thresholds
from anomalib_pose.geometry import Camera
from anomalib_pose.models.components.scene_detector import SceneDetector

logger = logging.getLogger(__name__)


class FeedForwardExportMixin:
    """ONNX and OpenVINO export of a model by the graph that its ``feed_forward`` builds."""

    graph_settings: ClassVar[tuple[str, ...]]
    """Arguments of ``feed_forward`` that a user gives among those of the export."""
    feed_forward: Callable[..., ExportedDetector]

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write the graph as ONNX.

        Args:
            export_root: folder that ``weights/onnx`` is made in.
            model_file_name: name without suffix.
            input_size: fixed (height, width) of the images, or None for what the graph takes.
            kwargs: ``graph_settings``, and arguments of ``torch.onnx.export``.
        """
        settings, kwargs = self._split(kwargs)
        return self.feed_forward(**settings).to_onnx(export_root, model_file_name, input_size, **kwargs)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: Any = None,
        onnx_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Write the graph as OpenVINO model.

        Args:
            export_root: folder that ``weights/openvino`` is made in.
            model_file_name: name without suffix.
            input_size: fixed (height, width) of the images, or None for what the graph takes.
            compression_type: None for single precision; see anomalib's ``CompressionType``.
            onnx_kwargs: ``graph_settings``, and arguments of ``torch.onnx.export``.
            kwargs: see anomalib's ``to_openvino``.
        """
        settings, onnx_kwargs = self._split(onnx_kwargs or {})
        return self.feed_forward(**settings, **self._measured_on(kwargs.get("datamodule"))).to_openvino(
            export_root, model_file_name, input_size, compression_type, onnx_kwargs=onnx_kwargs, **kwargs
        )

    def _measured_on(self, datamodule: AnomalibDataModule | None) -> dict[str, Any]:
        """What data that come with an export are to ``feed_forward``: nothing, unless a model says so."""
        del datamodule
        return {}

    def _split(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``feed_forward`` takes, and the rest."""
        settings = {name: value for name, value in kwargs.items() if name in self.graph_settings}
        return settings, {name: value for name, value in kwargs.items() if name not in settings}


class DetectorExportMixin(FeedForwardExportMixin):
    """ONNX and OpenVINO export of a model that owns a fitted ``SceneDetector`` as ``self.model``."""

    graph_settings = tuple(field.name for field in dataclasses.fields(DetectorSettings))
    model: SceneDetector
    post_processor: Any

    def _measured_on(self, datamodule: AnomalibDataModule | None) -> dict[str, Any]:
        """Thresholds are measured on data that are given."""
        return {"datamodule": datamodule}

    def feed_forward(
        self, *, datamodule: AnomalibDataModule | None = None, progress: bool = True, **settings: Any
    ) -> ExportedDetector:
        """Build the detector that is exported, calibrated on the views that the fit left out.

        Args:
            datamodule: has good and defective images to validate with, on which thresholds are measured; None to carry
                the model's over.
            progress: show bars.
            settings: fields of ``DetectorSettings`` that differ from its defaults.

        Raises:
            ValueError: if the model is not fitted, if its comparison cannot be exported, or if the bank would be larger
                than allowed.
        """
        if "steps" in settings:
            settings["steps"] = tuple(settings["steps"])  # a list on the command line
        model, chosen = self.model, DetectorSettings(**settings)
        if not len(model.bank):
            msg = "Nothing is fitted that could be exported: train the model first, or give its checkpoint."
            raise ValueError(msg)
        if model.comparison.memory is not None and bool(model.comparison.memory.trust.any()):
            logger.warning(
                "The model's memory has a share of at least %.2f in its maps and %.2f in its scores and is not "
                "exported: the detector will be worse than the model.", *model.comparison.memory.trust.tolist()
            )  # fmt: skip
        height, width = model.image_size.tolist()
        # Gaussians are drawn as they are; views that are warped are those that the model compares with
        scene = model.reference if rasterized_scene(model.rendered, chosen) is None else model.rendered
        detector = build_detector(
            scene,
            model.bank.poses,
            Camera(torch.eye(4).to(model.intrinsics), model.intrinsics, width, height),
            self._resized_comparator(chosen),
            chosen,
            white_background=bool(model.white_background),
            nearby=model.nearby,
            relight=model.comparison.relight,
            progress=progress,
        ).cpu()
        views = model.calibration_views.cpu().float() / 255
        surface = model.comparison.surface
        if len(views):
            detector.calibrate(views, copy.deepcopy(surface).cpu() if surface.fitted else None)
        else:
            logger.warning("No views were held out from the fit: the exported detector is not calibrated.")
        return ExportedDetector(detector, self._thresholds(detector, views, chosen.seed, datamodule, progress))

    def _resized_comparator(self, chosen: DetectorSettings) -> Comparator:
        """A copy of the model's comparator for windows of the detector's size."""
        size = chosen.sizes(drawn=rasterized_scene(self.model.rendered, chosen) is not None)[1]
        return self.model.comparison.comparator.resized(size)

    def _thresholds(
        self,
        detector: FeedForwardDetector,
        views: Tensor,
        seed: int,
        datamodule: AnomalibDataModule | None,
        progress: bool,
    ) -> Any:
        """The post-processor on the detector's scale."""
        if not self.post_processor:
            return None
        if datamodule is not None:
            datamodule.setup()
            batches = track(datamodule.val_dataloader(), "Measuring thresholds", disable=not progress)
            try:
                return calibrate_thresholds(copy.deepcopy(self.post_processor).cpu(), detector, batches)
            except ValueError as error:
                logger.warning("%s The model's are carried over.", error)
        if not len(views):
            return copy.deepcopy(self.post_processor).cpu()
        return self._carried_over(detector, views, seed, progress)

    def _carried_over(self, detector: FeedForwardDetector, views: Tensor, seed: int, progress: bool) -> Any:
        """The post-processor on the detector's scale, by scores of both paths on good and damaged views."""
        images = torch.cat([views, add_synthetic_defects(views, seed)])
        device = self.model.intrinsics.device
        theirs: list[tuple[Tensor, Tensor]] = []
        ours: list[tuple[Tensor, Tensor]] = []
        for image in track(images, "Carrying the thresholds over", disable=not progress):
            with torch.inference_mode(mode=False), torch.enable_grad():
                full = self.model(image[None].to(device))
            with torch.no_grad():
                fast = detector(image[None])
            theirs.append((full.pred_score.cpu(), full.anomaly_map.flatten().cpu()))
            ours.append((fast.pred_score, fast.anomaly_map.flatten()))
        (their_scores, their_maps), (our_scores, our_maps) = (zip(*each, strict=True) for each in (theirs, ours))
        line = ScoreLine(torch.cat(their_scores), torch.cat(our_scores))
        near = line.inliers.nonzero().flatten().tolist()
        pixels = ScoreMap(
            torch.cat([their_maps[index] for index in near]), torch.cat([our_maps[index] for index in near])
        )
        good = torch.cat(their_scores[: len(views)])
        return transfer_thresholds(self.post_processor, line, pixels, good).cpu()
