# SPDX-License-Identifier: Apache-2.0
"""Models of ``pose_agnostic.py``: construction with the weights of one network, fit, timing and prediction."""

import hashlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anomalib.models
import timm
import torch
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer
from pose_agnostic_data import Views, stacked
from pose_agnostic_methods import METHODS, Settings
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Normalize

import anomalib_pose
from anomalib_pose.compare import ScoringSettings, make_comparator
from anomalib_pose.data.posed.dataset import PosedDataset
from anomalib_pose.geometry import Camera
from anomalib_pose.models.components import SceneDetector
from anomalib_pose.models.components.scene_detector import FitScene
from anomalib_pose.pose import PoseEstimate, Query

_BATCH = 8


@dataclass
class Outcome:
    """Predictions of a model for all queries.

    Args:
        scores: (n,).
        maps: (n, h, w).
        seconds: mean seconds a query: ``total``, and for scene models ``coarse`` (retrieval from the bank), ``fine``
            (refinement), ``render`` (the reference) and ``compare``; the remainder of the total is overhead.
        references: rendered counterparts (n, 3, h, w) as bytes, or None.
        poses: estimated (n, 4, 4), or None.
        confidences: confidences of the poses.
        oracle: scores and maps with the true poses, or None.
        figures: further figures of the model.
    """

    scores: Tensor
    maps: Tensor
    seconds: dict[str, float]
    references: Tensor | None = None
    poses: Tensor | None = None
    confidences: list[float] = field(default_factory=list)
    oracle: tuple[Tensor, Tensor] | None = None
    figures: dict[str, Any] = field(default_factory=dict)


class Stopwatch:
    """Sums the seconds that functions take.

    Args:
        device: device that is synchronized before each reading.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its seconds are added to a part."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += self._now() - start

        return measured

    def watch(self, detector: SceneDetector) -> None:
        """Measure the parts of a detector from now on."""
        detector.bank.nearest = self.timed("coarse", detector.bank.nearest)
        detector.estimator.forward = self.timed("pose", detector.estimator.forward)
        detector.render_reference = self.timed("render", detector.render_reference)
        comparison = detector.comparison
        for part in (comparison.comparator, comparison.surface, comparison.memory):
            if part is None:
                continue
            part.forward = self.timed("compare", part.forward)
        comparison.comparator.score = self.timed("compare", comparison.comparator.score)

    def means(self, queries: int) -> dict[str, float]:
        """Return the mean seconds a query of each part; ``fine`` is the pose search without the retrieval."""
        means = {part: total / queries for part, total in self.seconds.items()}
        if "pose" in means:
            means["fine"] = means.pop("pose") - means.get("coarse", 0.0)
        return means


class TruePose(nn.Module):
    """Replacement of the pose search that returns the true pose, to measure the comparison alone."""

    retry_below = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.camera_to_world = torch.eye(4)

    def forward(self, scene: Any, bank: Any, query: Query, change: Callable[..., Query] | None = None) -> PoseEstimate:
        """Return an estimate with the true pose."""
        del scene, bank, change
        return PoseEstimate(query.camera_at(self.camera_to_world.to(query.K)), 0.0, 1.0, converged=True, n_renders=0)


class CachedFit:
    """Fit of a scene that reads the result of the same fit of the same images from a file, so that ablations share it.

    Args:
        fit_scene: fits a scene.
        folder: folder of the files.
    """

    def __init__(self, fit_scene: FitScene, folder: Path) -> None:
        self.fit_scene = fit_scene
        self.folder = folder
        self.seconds = 0.0

    def __call__(
        self,
        scene: nn.Module,
        images: Tensor,
        cameras: Camera,
        foreground: Tensor | None,
        held_out: tuple[int, ...],
    ) -> float:
        """Fit or read the scene; return the PSNR on the held-out views in dB. ``seconds`` are those of the fit."""
        ignored = {"progress", "decompose"}  # the benchmark gives no weights of a decomposition
        recipe = sorted((name, value) for name, value in vars(self.fit_scene).items() if name not in ignored)
        digest = hashlib.sha256(f"{type(scene).__name__} {recipe} {held_out} {images.device}".encode())
        for tensor in (images, cameras.camera_to_world, cameras.K, foreground):
            digest.update(b"" if tensor is None else tensor.cpu().contiguous().numpy().tobytes())
        path = self.folder / f"{digest.hexdigest()[:24]}.pt"
        if path.is_file():
            cached = torch.load(path, weights_only=True, map_location=images.device)
            scene.load_state_dict(cached["scene"])
            self.seconds = cached["seconds"]
            return cached["psnr"]
        start = time.perf_counter()
        psnr = float(self.fit_scene(scene, images, cameras, foreground, held_out))
        self.seconds = time.perf_counter() - start
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{time.time_ns()}.partial")
        torch.save({"scene": scene.state_dict(), "psnr": psnr, "seconds": self.seconds}, partial)
        partial.replace(path)
        return psnr


def scene_model(settings: Settings, weights: str) -> AnomalibModule:
    """Make a scene model that is not fitted, with a comparator that uses the network."""
    method = METHODS[settings.method]
    network: dict[str, Any] = {}
    if method.network and weights:
        network = {"backbone": settings.backbone, "weights_path": weights}
    # The detector needs the network at construction, because its patch memory stores the network's features.
    model = getattr(anomalib_pose, method.model)(**settings.arguments, **network)
    if network:
        normalization = {name: (getattr(settings, name),) * 3 for name in ("mean", "std")}
        network["network_options"] = {"pad_type": settings.pad_type, **normalization}
    scoring = {key: value for key, value in method.comparison.items() if key != "name"}
    options = {"scoring": ScoringSettings(**scoring)} if scoring else {}
    model.model.comparison.comparator = make_comparator(method.comparison["name"], **network, **options)
    return model


def run_scene(settings: Settings, weights: str, train: Views, test: Views, cache: Path) -> Outcome:
    """Fit a scene model and predict all queries, with estimated poses and with true poses."""
    model = scene_model(settings, weights)
    model.trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    detector: SceneDetector = model.model.to(settings.device)
    train, test = train.to(settings.device), test.to(settings.device)
    fit = CachedFit(model.fit_scene(), cache)
    start = time.perf_counter()
    detector.fit(train.image, train.cameras, train.foreground, fit)
    calibrated_s = time.perf_counter() - start
    stopwatch = Stopwatch(settings.device)
    stopwatch.watch(detector)
    scores, maps, renderings, poses, confidences = _predict(stopwatch.timed("total", detector), test)
    outcome = Outcome(
        scores,
        maps,
        stopwatch.means(len(test)),
        (renderings * 255).round().to(torch.uint8),
        poses,
        confidences.tolist(),
        figures={
            "psnr_db": float(detector.psnr),
            "scene_fit_s": fit.seconds,
            "fit_and_calibration_s": calibrated_s,
            "doubtful_poses": float((confidences < detector.estimator.retry_below).float().mean()),
            "center": detector.rendered.center.tolist(),
        },
    )
    if test.camera_to_world is not None:
        true_pose = detector.estimator = TruePose()
        outcome.oracle = _predict(detector, test, true_pose)[:2]
    return outcome


def _predict(detector: Callable[..., Any], test: Views, true_pose: TruePose | None = None) -> tuple[Tensor, ...]:
    """Predict scores, maps, references, poses and confidences of all queries, one by one."""
    predictions = []
    for index in range(len(test)):
        if true_pose is not None:
            true_pose.camera_to_world = test.camera_to_world[index]
        foreground = None if test.foreground is None else test.foreground[index : index + 1]
        predictions.append(detector(test.image[index : index + 1], test.K[index : index + 1], foreground))
    scores, maps, references, poses, confidences = (torch.cat(part).cpu() for part in zip(*predictions, strict=True))
    return scores, maps[:, 0], references, poses, confidences


def baseline_model(settings: Settings, weights: str, **changed: Any) -> AnomalibModule:
    """Make one of anomalib's models, and load the backbone's weights from a file; the model has no argument for it.

    Args:
        settings: settings of the run.
        weights: file with the backbone's weights.
        changed: further arguments of the model.
    """
    method = METHODS[settings.method]
    builder = getattr(anomalib.models, method.model)
    transform = builder.configure_pre_processor(image_size=(settings.window, settings.window)).transform
    for part in transform.transforms:
        if isinstance(part, Normalize):  # the normalization that the weights were trained with
            part.mean, part.std = [settings.mean] * 3, [settings.std] * 3
    layers = {"layer": settings.layers[-1]} if method.model == "Dfm" else {"layers": list(settings.layers)}
    off = {"post_processor": False, "evaluator": False, "visualizer": False}
    # The constructor copies the transform for exports, so it gets the changed transform.
    options = {"pre_trained": False, "pre_processor": PreProcessor(transform), **layers, **off, **settings.arguments}
    model = builder(settings.backbone, **{**options, **changed})
    extractor = model.model.feature_extractor
    padding = {"pad_type": settings.pad_type} if settings.pad_type else {}
    network = timm.create_model(settings.backbone, features_only=True, out_indices=extractor.idx, **padding)
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    network.load_state_dict({name: stored[name] for name in network.state_dict()})
    extractor.feature_extractor = network
    return model


def run_baseline(settings: Settings, weights: str, train: PosedDataset, test: Views) -> Outcome:
    """Train one of anomalib's models on the same images and predict all queries."""
    model = baseline_model(settings, weights)
    loader = DataLoader(train, _BATCH, collate_fn=train.collate_fn)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:  # the Engine always writes a checkpoint
        Engine(default_root_dir=folder, accelerator=settings.device, **options).fit(model, train_dataloaders=loader)
    fit_s = time.perf_counter() - start
    model = model.to(settings.device).eval()
    stopwatch = Stopwatch(settings.device)
    # not the module itself, because outside of the Engine it resizes like exported models, without antialiasing
    predict = stopwatch.timed("total", lambda image: model.model(model.pre_processor.transform(image)))
    with torch.no_grad():
        predictions = [predict(image[None].to(settings.device)) for image in test.image]
    maps = torch.cat([output.anomaly_map.reshape(1, 1, *output.anomaly_map.shape[-2:]) for output in predictions]).cpu()
    maps = functional.interpolate(maps, test.image.shape[-2:], mode="bilinear")[:, 0]
    scores = torch.cat([output.pred_score.reshape(1) for output in predictions]).cpu()
    return Outcome(scores, maps, stopwatch.means(len(test)), figures={"fit_and_calibration_s": fit_s})


def run_model(settings: Settings, weights: str, train: PosedDataset, test: Views, out: Path) -> Outcome:
    """Fit the method's model and predict all queries; fitted scenes are stored in ``out/scenes``."""
    if METHODS[settings.method].scene:
        return run_scene(settings, weights, stacked(train), test, out / "scenes")
    return run_baseline(settings, weights, train, test)
