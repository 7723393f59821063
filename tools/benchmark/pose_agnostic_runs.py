# SPDX-License-Identifier: Apache-2.0
"""One run of ``pose_agnostic.py``: a method on a data set with a seed, stored in one JSON file.

    python tools/benchmark/pose_agnostic_runs.py --settings JSON --weights FILE --out results/pose_agnostic

``pose_agnostic.py`` starts this program in a process of its own.
"""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import seed_everything
from matplotlib import colormaps
from pose_agnostic_data import Views, load, stacked
from pose_agnostic_methods import Settings
from pose_agnostic_models import Outcome, run_model
from pose_agnostic_scores import (
    bootstrap_interval,
    image_auroc,
    pixel_figures,
    pose_errors,
    pose_figures,
    worst_ranked,
)
from torch import Tensor

from anomalib_pose.data.files import write_image, write_json

GALLERY = 4
"""Number of pictures that each run stores."""


def run_path(out: Path, settings: Settings) -> Path:
    """Return the path of a run's result."""
    return out / "runs" / f"{settings.name}.json"


def finished(out: Path, settings: Settings) -> bool:
    """Return whether the run's result exists and was made with these settings."""
    path = run_path(out, settings)
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["settings"] == settings.stored()


def execute(settings: Settings, weights: str, out: Path) -> Path:
    """Execute one run and store its result.

    Args:
        settings: settings of the run.
        weights: file with the backbone's weights; empty for none.
        out: folder of the benchmark.

    Returns:
        The path of the result.
    """
    seed_everything(settings.seed)
    train, test_data = load(settings.data, settings.size)
    test = stacked(test_data)
    outcome = run_model(settings, weights, train, test, out)
    path = run_path(out, settings)
    result = {"settings": settings.stored(), **result_of(outcome, settings, len(train), test)}
    result["pictures"] = _pictures(outcome, test, out, settings)
    write_json(path, _plain(result))
    return path


def result_of(outcome: Outcome, settings: Settings, views: int, test: Views) -> dict[str, Any]:
    """Compute the figures of a run and the record of each query.

    Args:
        outcome: predictions of the model.
        settings: settings of the run.
        views: number of training views.
        test: the queries.
    """
    scores, labels = outcome.scores.tolist(), test.label.tolist()
    angles, percents = [], []
    if outcome.poses is not None and test.camera_to_world is not None:
        center = torch.tensor(outcome.figures["center"])
        angles, percents = pose_errors(outcome.poses, test.camera_to_world, center)
    height, width = test.image.shape[-2:]
    row = {
        "image_size": f"{width}x{height}",
        "views": views,
        "queries": len(test),
        "defective": int(test.label.sum()),
        "threads": torch.get_num_threads(),
        **_areas(outcome.scores, outcome.maps, test, settings.seed),
        **pose_figures(angles, percents),
        "seconds_per_query": outcome.seconds["total"],
        **{f"oracle_{name}": None for name in ("image_auroc", "pixel_auroc", "aupro")},
        **{name: value for name, value in outcome.figures.items() if name != "center"},
    }
    if outcome.oracle is not None:
        row |= {f"oracle_{name}": value for name, value in _areas(*outcome.oracle, test, settings.seed).items()}
    records = zip(test.files, labels, scores, strict=True)
    queries = [{"file": file, "label": label, "score": score} for file, label, score in records]
    for query, angle, percent in zip(queries, angles, percents, strict=False):
        query |= {"angle_deg": angle, "distance_percent": percent}
    for query, confidence in zip(queries, outcome.confidences, strict=False):
        query["confidence"] = confidence
    return {"row": row, "seconds": outcome.seconds, "queries": queries}


def _areas(scores: Tensor, maps: Tensor, test: Views, seed: int) -> dict[str, float | None]:
    values, labels = scores.tolist(), test.label.tolist()
    low, high = bootstrap_interval(values, labels, seed) or (None, None)
    return {
        "image_auroc": image_auroc(values, labels),
        "image_auroc_low": low,
        "image_auroc_high": high,
        **pixel_figures(maps, scores, test.label, test.mask),
    }


def _pictures(outcome: Outcome, test: Views, out: Path, settings: Settings) -> list[dict[str, Any]]:
    """Write query, reference and map of the worst-ranked queries side by side."""
    pictures = []
    largest = float(outcome.maps.max()) or 1.0
    for place, index in enumerate(worst_ranked(outcome.scores.tolist(), test.label.tolist(), GALLERY)):
        panels = [_bytes(test.image[index])]
        if outcome.references is not None:
            panels.append(outcome.references[index].permute(1, 2, 0).numpy())
        heat = colormaps["inferno"]((outcome.maps[index] / largest).clamp(0, 1).numpy())[..., :3]
        panels.append((heat * 255).round().astype(np.uint8))
        file = f"pictures/{settings.name}/{place}.png"
        write_image(out / file, np.concatenate(panels, 1))
        pictures.append({"picture": file, "query": test.files[index]})
    return pictures


def _bytes(image: Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def _plain(value: Any) -> Any:
    """Replace numbers that JSON lacks (infinity, nan) by None."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--settings", required=True, help="JSON of the run's settings")
    parser.add_argument("--weights", default="", help="file with the backbone's weights")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    execute(Settings.restored(json.loads(arguments.settings)), arguments.weights, Path(arguments.out))


if __name__ == "__main__":
    main()
