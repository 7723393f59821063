# SPDX-License-Identifier: Apache-2.0
"""Measure exported detectors of an object that ``splat_pose.py fit`` has fitted.

    python tools/benchmark/export.py DATA --category car --size 400 --weights FILE --views 200 1000 --full

For each size of the bank and of the window, the script exports a detector to OpenVINO. It measures the file size, the
seconds for an image on the machine's cores (latency hint, and throughput hint with as many requests as OpenVINO asks
for), image and pixel AUROC on the test images, and the fraction of poses within a degree of the truth. With ``--full``
it also measures the model itself on the same images, and how scores and poses of the exported detector agree with those
of the model. It then reports the fraction of correct labels at two thresholds: the one that anomalib chooses for the
model on these images, and the one that is transferred to the exported detector.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.data import ImageBatch
from anomalib.deploy import CompressionType
from anomalib.post_processing import PostProcessor
from scipy.stats import spearmanr
from splat_pose import calibrate, held_out_pairs, load_detector, network_settings, result_path, show, stacked
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from anomalib_pose.compare import CalibratedComparator
from anomalib_pose.data import MAD
from anomalib_pose.data.files import write_json
from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.deploy.thresholds import midway_threshold
from anomalib_pose.geometry import pose_error
from anomalib_pose.models.components import SceneDetector
from anomalib_pose.models.components.export_mixin import DetectorExportMixin
from anomalib_pose.models.omnipose_ad.torch_model import FIELDS

PRECISIONS = {
    "fp32": None,
    "fp16": CompressionType.FP16,
    "int8": CompressionType.INT8,
    "int8_ptq": CompressionType.INT8_PTQ,
}


class Exporter(DetectorExportMixin):
    """Export of a fitted detector without a Lightning model.

    Args:
        model: the detector.
        post_processor: post-processor with the model's thresholds, or None.
    """

    def __init__(self, model: SceneDetector, post_processor: PostProcessor | None) -> None:
        self.model = model
        self.post_processor = post_processor


def fitted(arguments: argparse.Namespace, train: dict[str, Tensor]) -> SceneDetector:
    """Load the stored detector and calibrate its comparison, with the given network, on the held-out views."""
    detector = load_detector(arguments)
    pairs = held_out_pairs(detector, train)
    calibrate(detector, CalibratedComparator(network_settings(arguments)), pairs, train)
    detector.calibration_views = (pairs[0] * 255).round().to(torch.uint8)
    return detector


def build(exporter: Exporter, views: int, window: int, bank: int, *, drawn: bool) -> tuple[ExportedDetector, float]:
    """Build the exported detector with raw scores, and return it with its threshold, NaN if there is none."""
    sizes = {"size": bank, "drawn_size": window} if drawn else {"size": window}
    exported = exporter.feed_forward(views=views, **sizes, drawn=drawn, max_megabytes=4000, progress=False)
    processor = exported.post_processor
    exported.post_processor = None
    return exported, float("nan") if processor is None else float(processor.image_threshold)


def run(path: Path, test: dict[str, Tensor], hint: str = "") -> tuple[dict[str, float], Tensor, Tensor]:
    """Measure size and speed of a file, and compute its scores and maps.

    A file for batches of several images gets each image that many times. ``hint`` is OpenVINO's inference precision;
    empty for OpenVINO's own choice.
    """
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": hint} if hint else {}
    compiled = core.compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY", **config})
    batch = compiled.input(0).get_partial_shape()[0]
    copies = batch.get_length() if batch.is_static else 1
    images = [image[None].repeat(copies, 1, 1, 1).numpy() for image in test["image"]]
    compiled(images[0])
    start = time.perf_counter()
    outputs = [compiled(image) for image in images]
    latency = (time.perf_counter() - start) / len(images)
    scores = torch.from_numpy(np.concatenate([output["pred_score"].reshape(-1)[:1] for output in outputs]))
    maps = torch.from_numpy(np.concatenate([output["anomaly_map"][:1] for output in outputs]))
    queue = openvino.AsyncInferQueue(core.compile_model(path, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT", **config}))
    start = time.perf_counter()
    for image in images:
        queue.start_async(image)
    queue.wait_all()
    result = {
        "megabytes": path.with_suffix(".bin").stat().st_size / 1e6,
        "latency_s": latency,
        "images_per_s": copies * len(images) / (time.perf_counter() - start),
    }
    return result, scores, maps


def accuracy(scores: Tensor, maps: Tensor, test: dict[str, Tensor]) -> dict[str, float]:
    maps = torch.nn.functional.interpolate(maps, test["mask"].shape[-2:], mode="bilinear")
    pixels = (test["mask"] > 0).int().flatten()
    return {  # scaled, because torchmetrics interprets values above 1 as logits
        "image_auroc": float(binary_auroc(scores / scores.max(), test["label"])),
        "pixel_auroc": float(binary_auroc((maps / maps.max()).flatten(), pixels)),
    }


def within_one_degree(estimates: Tensor, poses: Tensor) -> float:
    pairs = zip(estimates.double(), poses.double(), strict=True)
    angles = [pose_error(estimate, pose)[0] for estimate, pose in pairs]
    return float((torch.rad2deg(torch.stack(angles)) < 1).float().mean())


def label_accuracy(scores: Tensor, threshold: float, test: dict[str, Tensor]) -> float:
    return float(((scores > threshold) == test["label"].bool()).float().mean())


def anomalib_thresholds(scores: Tensor, maps: Tensor, test: dict[str, Tensor]) -> PostProcessor:
    """Choose thresholds for scores and maps as anomalib does."""
    processor = PostProcessor()
    labels = {"gt_label": test["label"].bool(), "gt_mask": test["mask"] > 0}
    processor.on_validation_batch_end(
        None, None, ImageBatch(test["image"], pred_score=scores, anomaly_map=maps, **labels)
    )
    processor.on_validation_epoch_end(None, None)
    return processor


def measure_full(
    detector: SceneDetector, test: dict[str, Tensor]
) -> tuple[dict[str, dict[str, float]], Tensor, Tensor, PostProcessor]:
    """Measure accuracy and seconds of the full model, and return its scores, poses and thresholds too."""
    start = time.perf_counter()
    outputs = [detector(image[None], K[None]) for image, K in zip(test["image"], test["K"], strict=True)]
    seconds = (time.perf_counter() - start) / len(outputs)
    scores, maps = (
        torch.cat([output.pred_score for output in outputs]),
        torch.cat([output.anomaly_map for output in outputs]),
    )
    poses = torch.cat([output.estimated_camera_to_world for output in outputs])
    processor = anomalib_thresholds(scores, maps[:, 0], test)
    row = {
        "latency_s": seconds,
        **accuracy(scores, maps, test),
        "within_1_deg": within_one_degree(poses, test["camera_to_world"]),
        "labels_right": label_accuracy(scores, float(processor.image_threshold), test),
    }
    return {"full model": row}, scores, poses, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=400, help="size of the images that were fitted")
    parser.add_argument("--views", type=int, nargs="+", default=[200, 1000, 4000])
    parser.add_argument("--window", type=int, nargs="+", default=[256, 400], help="size of the window that is compared")
    parser.add_argument("--bank", type=int, default=0, help="size of the bank's views where Gaussians are rasterized")
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--inference", default="", help="OpenVINO's precision, such as f32; empty for its own choice")
    parser.add_argument("--warped", action="store_true", help="warp views of the bank instead of rasterizing Gaussians")
    parser.add_argument("--full", action="store_true", help="compare with the model that is exported")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", help="file with the backbone's weights")
    parser.add_argument("--scene", default="gaussians", choices=["gaussians", *FIELDS])
    parser.set_defaults(queries="")
    parser.add_argument("--out", default="results/benchmark", help="folder that `splat_pose.py fit` wrote to")
    arguments = parser.parse_args()
    train, test, _ = stacked(arguments)
    result: dict[str, dict[str, Any]] = {}
    detector = fitted(arguments, train)
    full = measure_full(detector, test) if arguments.full else None
    exporter = Exporter(detector, full[3] if full else None)
    result.update(full[0] if full else {})
    data = MAD(root=arguments.data, category=arguments.category, image_size=arguments.size, num_workers=0)
    for views, window in itertools.product(arguments.views, arguments.window):
        drawn = not arguments.warped and arguments.scene == "gaussians"
        exported, threshold = build(exporter, views, window, arguments.bank, drawn=drawn)
        with torch.no_grad():
            poses = torch.cat([exported.model.reference(image[None]).camera_to_world for image in test["image"]])
        for precision in arguments.precision:
            folder = result_path(arguments, f"export_{views}_{window}_{precision}")
            path = exported.to_openvino(folder, compression_type=PRECISIONS[precision], datamodule=data)
            row, scores, maps = run(path, test, arguments.inference)
            row |= accuracy(scores, maps, test)
            row["within_1_deg"] = within_one_degree(poses, test["camera_to_world"])
            if full:
                row["rank_correlation"] = float(spearmanr(scores, full[1]).statistic)
                row["within_1_deg_of_full"] = within_one_degree(poses, full[2])
                row["labels_right"] = label_accuracy(scores, threshold, test)
                calibrated = anomalib_thresholds(scores, maps[:, 0], test)
                row["labels_right_measured"] = label_accuracy(
                    scores, midway_threshold(float(calibrated.image_threshold), scores), test
                )
            result[f"{views} views, {window} px, {precision}"] = row
            write_json(result_path(arguments, "export.json"), result)
    for name, row in result.items():
        show(f"export: {arguments.category}, fitted at {arguments.size} px, {name}", row)


if __name__ == "__main__":
    main()
