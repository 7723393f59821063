# SPDX-License-Identifier: Apache-2.0
"""Measure methods of pose-agnostic detection and anomalib's own models on data sets, with several seeds.

    python tools/benchmark/pose_agnostic.py --data car=datasets/brickmad:car \
        --data few=datasets/brickmad:car:views=0.1 --data tankard=data/tankard \
        --data warm=datasets/brickmad:car:queries=datasets/brickmad_warm \
        --methods splatpose splatpose_no_surface piad patchcore --seeds 0 1 --size 200 --weights FILE

A data set is ``NAME=ROOT:CATEGORY`` in MAD's layout, or ``NAME=ROOT`` for a folder with ``transforms.json`` and its
queries in ``queries`` and masks in ``ground_truth`` (as ``anomalib-pose draw-defects`` writes it; ``:queries=`` and
``:masks=`` name other folders). In MAD's layout ``:queries=ROOT2`` uses the test images of another root, in other
light. ``:views=0.1`` uses a tenth of the training views, ``:views=4`` four, evenly spaced. ``--data-file`` reads data
sets from a YAML file: a list of mappings with name, root, category, queries, masks and views.

Each run is a process of its own and writes one file to ``OUT/runs``. If a run fails, the other runs continue. A second
start repeats only runs whose file is missing or has other settings. It does not notice changed images or programs.
Fitted scenes are stored in ``OUT/scenes``, and methods with equal fits share them. ``results.json``, ``table.md``, ROC
curves, pose errors, latencies and the worst-ranked queries are written to ``OUT`` from all files with the current
settings. ``--report-only`` writes them without a run.

``pose_agnostic_methods.py`` lists the methods. The paper's preset and anomalib's models use the same backbone, weights
and images. ``--paper-steps`` shortens the paper's fit; the table has the number in its column of steps.
"""

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from pose_agnostic_data import parse_data, read_data_file
from pose_agnostic_methods import METHODS, Settings, sha256
from pose_agnostic_report import read_results, write_report
from pose_agnostic_runs import finished, run_path

logger = logging.getLogger(__name__)


def planned(arguments: argparse.Namespace) -> list[Settings]:
    """List all requested runs, in the order of the table.

    Raises:
        FileNotFoundError: if the file with weights does not exist.
        ValueError: if two data sets have the same name, or a method needs weights and none are given.
    """
    specs = [parse_data(text) for text in arguments.data]
    specs += [spec for path in arguments.data_file for spec in read_data_file(Path(path))]
    if len({spec.name for spec in specs}) < len(specs):
        msg = f"Data sets need different names, got {', '.join(spec.name for spec in specs)}."
        raise ValueError(msg)
    weights = Path(arguments.weights) if arguments.weights else None
    shared: dict[str, Any] = {name: getattr(arguments, name) for name in _SHARED}
    shared["layers"] = tuple(shared["layers"])
    if weights is not None:
        shared |= {"weights": weights.name, "weights_sha256": sha256(weights)}
    combinations = product(specs, arguments.methods, arguments.seeds)
    return [Settings(spec, method, seed, **shared) for spec, method, seed in combinations]


def run_all(plan: Sequence[Settings], weights: str, out: Path, jobs: int) -> list[str]:
    """Execute the runs that have no result with the current settings.

    Args:
        plan: all runs.
        weights: file with the backbone's weights; empty for none.
        out: folder of the benchmark.
        jobs: number of processes at a time.

    Returns:
        Names of the runs that failed.
    """
    open_runs = [settings for settings in plan if not finished(out, settings)]
    logger.info("%d of %d runs are finished.", len(plan) - len(open_runs), len(plan))
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda settings: run_child(settings, weights, out), open_runs))
    return [settings.name for settings, code in zip(open_runs, codes, strict=True) if code]


def run_child(settings: Settings, weights: str, out: Path) -> int:
    """Execute one run in a process of its own; its output goes to ``logs``. Return the exit status."""
    log = out / "logs" / f"{settings.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    program = Path(__file__).with_name("pose_agnostic_runs.py")
    command = [sys.executable, str(program), "--settings", json.dumps(asdict(settings)), "--out", str(out)]
    if weights:
        command += ["--weights", weights]
    logger.info("%s", settings.name)
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        logger.error("%s failed with status %d: see %s.", settings.name, code, log)
    return code


def report(plan: Sequence[Settings], out: Path) -> None:
    """Write tables and plots of all stored runs, without runs whose settings have changed."""
    stale = {str(run_path(out, settings)) for settings in plan if not finished(out, settings)}
    order = {settings.name: place for place, settings in enumerate(plan)}

    def name(result: dict[str, Any]) -> str:
        settings = result["settings"]
        return f"{settings['data']['name']}-{settings['method']}-{settings['seed']}"

    current = [result for result in read_results(out) if str(out / "runs" / f"{name(result)}.json") not in stale]
    current.sort(key=lambda result: order.get(name(result), len(order)))
    files = write_report(out, current, [Path(path).stem for path in stale])
    logger.info("Wrote %d files to %s: read table.md.", len(files), out)


_SHARED = (
    "size", "backbone", "mean", "std", "pad_type", "layers", "window", "steps", "paper_steps", "paper_refiner_steps",
    "device",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", action="append", default=[], help="NAME=ROOT:CATEGORY[:queries=ROOT2][:views=0.1]")
    result.add_argument("--data-file", action="append", default=[], help="YAML file with a list of data sets")
    result.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    result.add_argument("--seeds", type=int, nargs="+", default=[0])
    result.add_argument("--out", default="results/pose_agnostic")
    result.add_argument("--jobs", type=int, default=1, help="processes at a time")
    result.add_argument("--size", type=int, default=Settings.size, help="longer side of the images in pixels")
    result.add_argument("--weights", default="", help="file with the backbone's weights")
    result.add_argument("--backbone", default=Settings.backbone, help="timm name of the network")
    result.add_argument("--mean", type=float, default=Settings.mean, help="normalization of the network, all channels")
    result.add_argument("--std", type=float, default=Settings.std, help="normalization of the network, all channels")
    result.add_argument("--pad-type", default=Settings.pad_type, help="padding of its convolutions; '' for timm's")
    result.add_argument("--layers", nargs="+", default=list(Settings.layers), help="stages that anomalib's models read")
    result.add_argument(
        "--window", type=int, default=Settings.window, help="side that anomalib's models resize images to"
    )
    result.add_argument(
        "--steps", type=int, default=0, help="steps of all fits except the papers'; 0 for the models' defaults"
    )
    result.add_argument(
        "--paper-steps",
        type=int,
        default=Settings.paper_steps,
        help="steps of the papers' fits; 0 for the papers' numbers",
    )
    result.add_argument(
        "--paper-refiner-steps",
        type=int,
        default=Settings.paper_refiner_steps,
        help="steps of the papers' refiners; 0 for the papers' numbers",
    )
    result.add_argument("--device", default=Settings.device, choices=["cpu", "cuda"])
    result.add_argument("--report-only", action="store_true", help="write the report without a run")
    return result


def main(words: Sequence[str] | None = None) -> int:
    command_line = parser()
    arguments = command_line.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(arguments.out)
    try:
        plan = planned(arguments)
    except (FileNotFoundError, ValueError) as error:
        command_line.exit(2, f"{error}\n")
    failed = [] if arguments.report_only else run_all(plan, arguments.weights, out, arguments.jobs)
    report(plan, out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
