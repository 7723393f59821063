# SPDX-License-Identifier: Apache-2.0
"""ONNX and OpenVINO export of the models; scene models are exported as a feed-forward detector."""

import copy
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
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
from anomalib_pose.deploy.export_settings import check_arguments, check_input_size, checked_compression
from anomalib_pose.deploy.openvino.export import check_quantization
from anomalib_pose.deploy.settings import check_warped_settings
from anomalib_pose.deploy.thresholds import ScoreLine, ScoreMap, calibrate_thresholds, transfer_thresholds
from anomalib_pose.geometry import Camera
from anomalib_pose.models.components.run_report import export_run
from anomalib_pose.models.components.scene_detector import SceneDetector
from anomalib_pose.progress import show_progress, track
from anomalib_pose.render.threads import small_operations
from anomalib_pose.scene import GaussianScene

logger = logging.getLogger(__name__)


class FeedForwardExportMixin:
    """ONNX and OpenVINO export of the graph that the model's ``feed_forward`` builds."""

    graph_settings: ClassVar[tuple[str, ...]]
    """Names of the arguments of ``feed_forward`` that the export accepts too."""
    feed_forward: Callable[..., ExportedDetector]

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export the graph as ONNX.

        Args:
            export_root: folder in which ``weights/onnx`` is created.
            model_file_name: file name without suffix.
            input_size: fixed (height, width) of the images, or None for the sizes that the graph accepts.
            kwargs: arguments in ``graph_settings``, and arguments of ``torch.onnx.export``.

        Raises:
            ValueError: if a setting is unknown, or contradicts the model.
        """
        settings, kwargs = self._split(kwargs)
        self._check_export(input_size)
        with export_run(export_root):
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
        """Export the graph as an OpenVINO model.

        Args:
            export_root: folder in which ``weights/openvino`` is created.
            model_file_name: file name without suffix.
            input_size: fixed (height, width) of the images, or None for the sizes that the graph accepts.
            compression_type: None for single precision; see anomalib's ``CompressionType``.
            onnx_kwargs: arguments in ``graph_settings``, and arguments of ``torch.onnx.export``.
            kwargs: see anomalib's ``to_openvino``.

        Raises:
            ValueError: if a setting is unknown, or contradicts the model.
        """
        compression_type = checked_compression(compression_type)
        self._check_export(input_size, compression_type, kwargs.get("datamodule"))
        settings, onnx_kwargs = self._split(onnx_kwargs or {})
        with export_run(export_root):
            graph = self.feed_forward(**settings, **self._validation_arguments(kwargs.get("datamodule")))
            return graph.to_openvino(
                export_root, model_file_name, input_size, compression_type, onnx_kwargs=onnx_kwargs, **kwargs
            )

    def _validation_arguments(self, datamodule: AnomalibDataModule | None) -> dict[str, Any]:
        """Return the arguments of ``feed_forward`` for the datamodule of an export; none by default."""
        del datamodule
        return {}

    def _split(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split arguments into those of ``feed_forward`` and all others."""
        settings = {name: value for name, value in kwargs.items() if name in self.graph_settings}
        others = {name: value for name, value in kwargs.items() if name not in settings}
        check_arguments(others, self.graph_settings)
        return settings, others

    def _check_export(
        self, input_size: Any, compression: CompressionType | None = None, datamodule: Any = None
    ) -> None:
        """Refuse settings before the graph is built, which can take minutes."""
        del compression, datamodule
        check_input_size(input_size)


class DetectorExportMixin(FeedForwardExportMixin):
    """ONNX and OpenVINO export of a model that owns a fitted ``SceneDetector`` as ``self.model``."""

    graph_settings = tuple(field.name for field in dataclasses.fields(DetectorSettings))
    model: SceneDetector
    post_processor: Any

    def _check_export(
        self, input_size: Any, compression: CompressionType | None = None, datamodule: Any = None
    ) -> None:
        """Refuse sizes of another aspect, and quantization without a network or without data."""
        height, width = self.model.image_size.tolist()
        check_input_size(input_size, (height, width) if height and width else None)
        if compression == CompressionType.INT8_PTQ:
            check_quantization(self.model.comparison.comparator, datamodule)

    def _validation_arguments(self, datamodule: AnomalibDataModule | None) -> dict[str, Any]:
        """Pass the datamodule on: the thresholds of the detector are calibrated on it."""
        return {"datamodule": datamodule}

    @small_operations()
    def feed_forward(
        self, *, datamodule: AnomalibDataModule | None = None, progress: bool = True, **settings: Any
    ) -> ExportedDetector:
        """Build the detector for export, calibrated on the views that were held out from the fit.

        Args:
            datamodule: validation data with normal and anomalous images, to calibrate thresholds; None to transfer the
                thresholds of the model.
            progress: show progress bars.
            settings: fields of ``DetectorSettings`` that differ from its defaults.

        Raises:
            ValueError: if the model is not fitted, its comparison cannot be exported, or the bank exceeds its limit.
        """
        if isinstance(settings.get("steps"), list):
            settings["steps"] = tuple(settings["steps"])  # the command line passes a list
        model, detector_settings = self.model, DetectorSettings(**settings)
        if not len(model.bank):
            msg = (
                "The model is not fitted and cannot be exported: train it first, or give its checkpoint by --ckpt_path."
            )
            raise ValueError(msg)
        if model.comparison.memory is not None and bool(model.comparison.memory.mixing_weights.any()):
            logger.warning(
                "The patch memory has a mixing weight of at least %.2f in maps and %.2f in scores and is not exported: "
                "the detector will be worse than the model.", *model.comparison.memory.mixing_weights.tolist()
            )  # fmt: skip
        if not isinstance(model.rendered, GaussianScene):
            check_warped_settings(detector_settings, "a scene without Gaussians")
        height, width = model.image_size.tolist()
        # Gaussians are rasterized without corrections. Warped views are the corrected references of the model.
        scene = model.reference if rasterized_scene(model.rendered, detector_settings) is None else model.rendered
        detector = build_detector(
            scene,
            model.bank.poses,
            Camera(torch.eye(4).to(model.intrinsics), model.intrinsics, width, height),
            self._resized_comparator(detector_settings),
            detector_settings,
            white_background=bool(model.white_background),
            nearby=model.nearby,
            relight=model.comparison.relight,
            progress=progress,
        ).cpu()
        views = model.calibration_views.cpu().float() / 255
        surface = model.comparison.surface
        if len(views):
            with show_progress(progress):
                detector.calibrate(views, copy.deepcopy(surface).cpu() if surface.fitted else None)
        else:
            logger.warning("No views were held out from the fit: the exported detector is not calibrated.")
        post_processor = self._detector_post_processor(detector, views, detector_settings.seed, datamodule, progress)
        return ExportedDetector(detector, post_processor)

    def _resized_comparator(self, settings: DetectorSettings) -> Comparator:
        """Return a copy of the model's comparator for windows of the detector's size."""
        size = settings.sizes(drawn=rasterized_scene(self.model.rendered, settings) is not None)[1]
        return self.model.comparison.comparator.resized(size)

    def _detector_post_processor(
        self,
        detector: FeedForwardDetector,
        views: Tensor,
        seed: int,
        datamodule: AnomalibDataModule | None,
        progress: bool,
    ) -> Any:
        """Return a copy of the post-processor on the detector's scale, or None without one."""
        if not self.post_processor:
            return None
        if datamodule is not None:
            datamodule.setup()
            batches = track(datamodule.val_dataloader(), "Calibrate thresholds", shown=progress)
            try:
                return calibrate_thresholds(copy.deepcopy(self.post_processor).cpu(), detector, batches)
            except ValueError as error:
                logger.warning("%s The thresholds of the model are transferred.", error)
        if not len(views):
            return copy.deepcopy(self.post_processor).cpu()
        return self._transfer_post_processor(detector, views, seed, progress)

    def _transfer_post_processor(self, detector: FeedForwardDetector, views: Tensor, seed: int, progress: bool) -> Any:
        """Transfer the post-processor with scores of model and detector on normal views and synthetic defects."""
        images = torch.cat([views, add_synthetic_defects(views, seed)])
        device = self.model.intrinsics.device
        model_outputs: list[tuple[Tensor, Tensor]] = []
        detector_outputs: list[tuple[Tensor, Tensor]] = []
        for image in track(images, "Transfer thresholds", shown=progress):
            with torch.inference_mode(mode=False), torch.enable_grad():
                prediction = self.model(image[None].to(device))
            with torch.no_grad():
                output = detector(image[None])
            model_outputs.append((prediction.pred_score.cpu(), prediction.anomaly_map.flatten().cpu()))
            detector_outputs.append((output.pred_score, output.anomaly_map.flatten()))
        model_scores, model_maps = zip(*model_outputs, strict=True)
        detector_scores, detector_maps = zip(*detector_outputs, strict=True)
        image_line = ScoreLine(torch.cat(model_scores), torch.cat(detector_scores))
        inliers = image_line.inliers.nonzero().flatten().tolist()
        pixel_map = ScoreMap(
            torch.cat([model_maps[index] for index in inliers]), torch.cat([detector_maps[index] for index in inliers])
        )
        normal_scores = torch.cat(model_scores[: len(views)])
        return transfer_thresholds(self.post_processor, image_line, pixel_map, normal_scores).cpu()
