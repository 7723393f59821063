# SPDX-License-Identifier: Apache-2.0
"""Measure mutual scoring of clouds: python tools/benchmark/mutual.py DATA --category cable_gland --weights FILE.

DATA is a folder in raw MVTec 3D-AD's layout. Features of views and photographs are computed once; then each setting
scores the whole test set. The figures are transductive: they depend on the composition of the test set.
``--weights`` takes a file with TensorFlow's weights of MobileNetV2; without it timm downloads the weights of
``--backbone``.
"""

import argparse
import json
import logging
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from anomalib.metrics import AUPRO
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from anomalib_pose.compare.features import FeatureExtractor
from anomalib_pose.data import CloudBatch, MVTec3DRendered
from anomalib_pose.models.point_ad.aggregation import object_scores
from anomalib_pose.models.point_ad.cloud_grid import grid_of
from anomalib_pose.models.point_ad.mutual import MutualScorer, MutualSettings

TENSORFLOW: dict[str, Any] = {"pad_type": "same", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class CachedFeatures(torch.nn.Module):
    """Computes the features of all stages once for each image in memory, and returns the selected stages."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        self.selected = extractor.layers
        self.cache: dict[int, list[Tensor]] = {}
        self.seconds = 0.0

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the selected stages of images (n, 3, h, w)."""
        key = images.data_ptr()
        if key not in self.cache:
            start = time.perf_counter()
            self.cache[key] = [layer.half() for layer in self.extractor(images)]
            self.seconds += time.perf_counter() - start
        return [self.cache[key][self.extractor.layers.index(layer)] for layer in self.selected]


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    layers: tuple[int, ...] = (2, 3)
    mutual: MutualSettings = field(default_factory=MutualSettings)
    smoothing: float = 4.0
    top_fraction: float = 0.0


def settings(names: list[str]) -> list[Setting]:
    base = Setting("default")
    plain = MutualSettings()
    rows = [
        base,
        replace(base, name="not centered", mutual=replace(plain, centered=False)),
        replace(base, name="neighborhoods 1, 3, 5", mutual=replace(plain, neighborhoods=(1, 3, 5))),
        replace(base, name="lowest 10 %", mutual=replace(plain, share=0.1)),
        replace(base, name="lowest 60 %", mutual=replace(plain, share=0.6)),
        replace(base, name="windows 1, 2, 3", mutual=replace(plain, windows=(1, 2, 3))),
        replace(base, name="stride 8", layers=(2,)),
        replace(base, name="stride 16", layers=(3,)),
        replace(base, name="strides 8, 16, 32", layers=(2, 3, 4)),
        replace(base, name="smoothing 2", smoothing=2.0),
        replace(base, name="top 0.5 %", top_fraction=0.005),
        replace(base, name="top 5 %", top_fraction=0.05),
        replace(base, name="background too", mutual=replace(plain, foreground_only=False)),
    ]
    return [row for row in rows if not names or row.name in names]


def measure(setting: Setting, batches: list[Any], features: CachedFeatures) -> dict[str, float]:
    """Measure one setting, without and with photographs, with cached features."""
    results = {}
    features.selected = setting.layers
    for name, fused in (("views", False), ("with photograph", True)):
        scorer = MutualScorer(features, replace(setting.mutual, fuse_rgb=fused))
        before, start = features.seconds, time.perf_counter()
        scorer.collect(batches, torch.device("cpu"), progress=False)
        objects = []
        for batch in batches:
            (scores,) = scorer.score_images(batch)
            objects.append(object_scores(scores, grid_of(batch, 0), setting.smoothing, setting.top_fraction))
        seconds = time.perf_counter() - start - (features.seconds - before)
        maps = torch.stack([result.point_map for result in objects])
        scores_of_objects = torch.stack([result.score for result in objects])
        figures = evaluate(batches, maps, scores_of_objects) | {"s/cloud": seconds / len(batches)}
        results |= {f"{name}: {key}": value for key, value in figures.items()}
    return results


def evaluate(batches: list[Any], maps: Tensor, scores: Tensor) -> dict[str, float]:
    """Compute image AUROC and AP, AUROC of points, and AUPRO."""
    labels = torch.cat([batch.gt_label for batch in batches]).int().numpy()
    masks, valid = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("gt_mask", "valid"))
    aupro = AUPRO(fields=["anomaly_map", "gt_mask"])
    for mask, point_map in zip(masks, maps, strict=True):
        aupro.update(CloudBatch(image=torch.zeros(1, 3, 8, 8), gt_mask=mask[None], anomaly_map=point_map[None]))
    return {
        "AUROC": float(roc_auc_score(labels, scores.numpy())),
        "AP": float(average_precision_score(labels, scores.numpy())),
        "points": float(roc_auc_score(masks[valid].numpy(), maps[valid].numpy())),
        "AUPRO": float(aupro.compute()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--category", required=True, help="category of the data set")
    parser.add_argument("--weights", default="", help="file with TensorFlow's weights of MobileNetV2")
    parser.add_argument("--backbone", default="mobilenetv2_100.ra_in1k", help="timm name of the network")
    parser.add_argument("--views", type=int, default=9, help="number of views: 5, 9 or 11")
    parser.add_argument("--size", type=int, default=336, help="width and height of the views")
    parser.add_argument("--settings", nargs="*", default=[], help="names of settings, as in the table; default: all")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--json", type=Path, help="output file of the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    extractor = FeatureExtractor(
        arguments.backbone, (1, 2, 3, 4), weights_path=arguments.weights, **(TENSORFLOW if arguments.weights else {})
    )
    data = MVTec3DRendered(
        arguments.data, arguments.category, None, views=arguments.views, size=arguments.size, num_workers=0
    )
    data.setup()
    batches = list(track(DataLoader(data.test_data, 1, collate_fn=CloudBatch.collate), "Rendering", transient=True))
    features = CachedFeatures(extractor)
    for batch in track(batches, "Reading features", transient=True):
        features(batch.views[0])
        features(batch.image[0][None])
    logging.getLogger("anomalib_pose").setLevel(logging.ERROR)  # each setting would log that it is transductive
    rows = {}
    for setting in track(settings(arguments.settings), "Scoring", transient=True):
        rows[setting.name] = measure(setting, batches, features)
    report(rows, len(batches), features.seconds / len(batches), arguments)


def report(rows: dict[str, dict[str, float]], clouds: int, seconds: float, arguments: argparse.Namespace) -> None:
    title = (
        f"{arguments.category}: {clouds} clouds, {arguments.views} views, transductive; features take {seconds:.2f} s "
        f"a cloud, {arguments.threads} thread(s)"
    )
    table = Table(title=title)
    table.add_column("setting")
    columns = list(next(iter(rows.values())))
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[c]:.2f}" if c.endswith("s/cloud") else f"{100 * row[c]:.1f}" for c in columns))
    Console(width=200).print(table)
    if arguments.json:
        temporary = arguments.json.with_suffix(".tmp")
        temporary.write_text(json.dumps({"seconds of features": seconds, "settings": rows}, indent=2))
        os.replace(temporary, arguments.json)  # noqa: PTH105


if __name__ == "__main__":
    main()
