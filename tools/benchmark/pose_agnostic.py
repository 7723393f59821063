# SPDX-License-Identifier: Apache-2.0
"""Measure methods of pose-agnostic detection on data sets, with several seeds, beside anomalib's own models.

    python tools/benchmark/pose_agnostic.py --data car=datasets/brickmad:car \
        --data few=datasets/brickmad:car:views=0.1 --data tankard=data/tankard \
        --data warm=datasets/brickmad:car:queries=datasets/brickmad_warm \
        --methods splatpose splatpose_no_surface piad patchcore --seeds 0 1 --size 200 --weights FILE

A data set is ``NAME=ROOT:CATEGORY`` in MAD's layout, or ``NAME=ROOT`` for a folder with ``transforms.json`` and its
queries in ``queries`` and masks in ``ground_truth`` (as ``anomalib-pose draw-defects`` writes it; ``:queries=`` and
``:masks=`` name others). ``:queries=ROOT2`` in MAD's layout takes the test images of another root, in other light.
``:views=0.1`` keeps a tenth of the training views, ``:views=4`` four, evenly spaced. ``--data-file`` takes the same
from a YAML file, a list of mappings with name, root, category, queries, masks and views.

Each run is a process of its own and leaves one file in ``OUT/runs``; if it aborts, the others go on. Started again, the
benchmark does what is missing, and what has other settings than the file that is there; it does not notice that images
or programs were changed. Fitted scenes are kept in ``OUT/scenes`` and shared by the methods that fit them alike.
``results.json``, ``table.md``, ROC curves, pose errors, latencies and the worst-ranked queries are written to ``OUT``
from all files whose settings are up to date; ``--report-only`` writes them from what is there.

Methods are those of ``pose_agnostic_methods.py``. The paper's preset and anomalib's models take the same backbone,
weights and images. ``--paper-steps`` shortens the paper's fit; the table says so in its column of steps.
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
    """All runs that are asked for, in the order of the table.

    Raises:
        FileNotFoundError: if there are no weights at the given path.
        ValueError: if a data set is given twice, or a method needs weights and has none.
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
    """Do the runs that have no up-to-date result.

    Args:
        plan: all runs.
        weights: file with the backbone's weights; empty for none.
        out: folder of the benchmark.
        jobs: how many processes at a time.

    Returns:
        Names of the runs that failed.
    """
    open_runs = [settings for settings in plan if not finished(out, settings)]
    logger.info("%d of %d runs are finished.", len(plan) - len(open_runs), len(plan))
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda settings: run_child(settings, weights, out), open_runs))
    return [settings.name for settings, code in zip(open_runs, codes, strict=True) if code]


def run_child(settings: Settings, weights: str, out: Path) -> int:
    """Do one run in a process of its own, whose output goes to ``logs``; returns its exit status."""
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
    """Write tables and plots of all runs that are kept, but for those whose settings are not up to date."""
    stale = {str(run_path(out, settings)) for settings in plan if not finished(out, settings)}
    order = {settings.name: place for place, settings in enumerate(plan)}

    def name(result: dict[str, Any]) -> str:
        settings = result["settings"]
        return f"{settings['data']['name']}-{settings['method']}-{settings['seed']}"

    kept = [result for result in read_results(out) if str(out / "runs" / f"{name(result)}.json") not in stale]
    kept.sort(key=lambda result: order.get(name(result), len(order)))
    files = write_report(out, kept, [Path(path).stem for path in stale])
    logger.info("Wrote %d files to %s: table.md is the table.", len(files), out)


_SHARED = (
    "size", "backbone", "mean", "std", "pad_type", "layers", "window", "steps", "paper_steps", "paper_refiner_steps",
    "device",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", action="append", default=[], help="NAME=ROOT:CATEGORY[:queries=ROOT2][:views=0.1]")
    made.add_argument("--data-file", action="append", default=[], help="YAML file with a list of data sets")
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--out", default="results/pose_agnostic")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time")
    made.add_argument("--size", type=int, default=Settings.size, help="longer side of the images in pixels")
    made.add_argument("--weights", default="", help="file with the backbone's weights")
    made.add_argument("--backbone", default=Settings.backbone, help="timm name of the network")
    made.add_argument("--mean", type=float, default=Settings.mean, help="normalization of the network, all channels")
    made.add_argument("--std", type=float, default=Settings.std, help="normalization of the network, all channels")
    made.add_argument("--pad-type", default=Settings.pad_type, help="padding of its convolutions; '' for timm's")
    made.add_argument("--layers", nargs="+", default=list(Settings.layers), help="stages that anomalib's models read")
    made.add_argument("--window", type=int, default=Settings.window, help="side of anomalib's models' images")
    made.add_argument("--steps", type=int, default=0, help="of the fits but the paper's; 0 for the models' defaults")
    made.add_argument(
        "--paper-steps", type=int, default=Settings.paper_steps, help="of the papers' fits; 0 for their own"
    )
    made.add_argument("--paper-refiner-steps", type=int, default=Settings.paper_refiner_steps, help="0: their own")
    made.add_argument("--device", default=Settings.device, choices=["cpu", "cuda"])
    made.add_argument("--report-only", action="store_true", help="measure nothing")
    return made


def main(words: Sequence[str] | None = None) -> int:
    found = parser()
    arguments = found.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    out = Path(arguments.out)
    try:
        plan = planned(arguments)
    except (FileNotFoundError, ValueError) as error:
        found.exit(2, f"{error}\n")
    failed = [] if arguments.report_only else run_all(plan, arguments.weights, out, arguments.jobs)
    report(plan, out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
