# SPDX-License-Identifier: Apache-2.0
"""Measure exported detectors of an object that ``splat_pose.py fit`` has fitted.

    python tools/benchmark/export.py DATA --category car --size 400 --weights FILE --views 200 500 --window 256

For each bank and window it exports to OpenVINO in fp32, fp16 and int8, and measures file size, seconds an image on the
machine's cores (latency hint, and throughput hint with as many requests as OpenVINO wants), image and pixel AUROC on
the test images, and the share of poses within a degree of the truth.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.deploy import CompressionType
from splat_pose import kept, load_detector, network_options, show, stacked
from torch import Tensor
from torchmetrics.classification import BinaryAUROC

from anomalib_pose.compare import CalibratedComparator
from anomalib_pose.deploy import ExportedDetector
from anomalib_pose.geometry import pose_error
from anomalib_pose.models.components.export_mixin import DetectorExportMixin

PRECISIONS = {"fp32": None, "fp16": CompressionType.FP16, "int8": CompressionType.INT8}


class Exporter(DetectorExportMixin):
    """A fitted detector without a model around it."""

    post_processor = None


def build(arguments: argparse.Namespace, views: int, window: int) -> ExportedDetector:
    exporter = Exporter()
    exporter.model = load_detector(arguments)
    exporter.model.comparator = CalibratedComparator(**network_options(arguments))
    if exporter.model.comparator.extractor is not None:
        exporter.model.comparator.extractor.load()
    return exporter.feed_forward(views=views, size=window, max_megabytes=4000, progress=False)


def measure(path: Path, test: dict[str, Tensor]) -> dict[str, float]:
    core = openvino.Core()
    compiled = core.compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    images = [image[None].numpy() for image in test["image"]]
    compiled(images[0])
    start = time.perf_counter()
    found = [compiled(image) for image in images]
    latency = (time.perf_counter() - start) / len(images)
    scores = torch.from_numpy(np.concatenate([one["pred_score"] for one in found]))
    maps = torch.from_numpy(np.concatenate([one["anomaly_map"] for one in found]))
    throughput = core.compile_model(path, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    queue = openvino.AsyncInferQueue(throughput)
    start = time.perf_counter()
    for image in images:
        queue.start_async(image)
    queue.wait_all()
    pixels = (test["mask"] > 0).int().flatten()
    return {
        "megabytes": path.with_suffix(".bin").stat().st_size / 1e6,
        "latency_s": latency,
        "images_per_s": len(images) / (time.perf_counter() - start),
        "image_auroc": float(BinaryAUROC()(scores / scores.max(), test["label"])),
        "pixel_auroc": float(BinaryAUROC(thresholds=200)((maps / maps.max()).flatten(), pixels)),
    }


@torch.no_grad()
def within_one_degree(exported: ExportedDetector, test: dict[str, Tensor]) -> float:
    poses = [exported.model.reference(image[None])[3][0] for image in test["image"]]
    angles = [
        pose_error(pose.double(), truth.double())[0] for pose, truth in zip(poses, test["camera_to_world"], strict=True)
    ]
    return float((torch.rad2deg(torch.stack(angles)) < 1).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="folder with the categories")
    parser.add_argument("--category", required=True)
    parser.add_argument("--size", type=int, default=400, help="of the images that were fitted")
    parser.add_argument("--views", type=int, nargs="+", default=[200, 500])
    parser.add_argument("--window", type=int, nargs="+", default=[256])
    parser.add_argument("--precision", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--weights", help="file with the backbone's weights")
    parser.add_argument("--out", default="results/benchmark", help="folder that `splat_pose.py fit` wrote to")
    arguments = parser.parse_args()
    _, test, _ = stacked(arguments)
    result: dict[str, dict[str, Any]] = {}
    for views in arguments.views:
        for window in arguments.window:
            exported = build(arguments, views, window)
            poses = within_one_degree(exported, test)
            for precision in arguments.precision:
                folder = kept(arguments, f"export_{views}_{window}_{precision}")
                path = exported.to_openvino(folder, compression_type=PRECISIONS[precision])
                result[f"{views} views, {window} px, {precision}"] = {**measure(path, test), "within_1_deg": poses}
                kept(arguments, "export.json").write_text(json.dumps(result, indent=2))
    show(f"export: {arguments.category}, fitted at {arguments.size} px", result)


if __name__ == "__main__":
    main()
