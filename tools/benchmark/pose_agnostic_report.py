# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of the stored results of ``pose_agnostic.py``: results.json, table.md, and pictures."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from anomalib_pose.data.files import write_json, write_text

mpl.use("agg")

_PARTS = ("coarse", "fine", "render", "compare")
_NOTES = """
AUROC and AUPRO use no threshold, and no threshold was chosen on test labels. In brackets: 95% bootstrap interval over
the queries. Poses: percentage of queries within 1 degree (and 1% of the camera's distance), median error, percentage
lost (beyond 5 degrees or 5%), and percentage of low confidence (below the model's own limit). With true pose: image
AUROC, pixel AUROC and AUPRO of the same comparison with true poses instead of estimated poses.
"""

Result = dict[str, Any]


def read_results(out: Path) -> list[Result]:
    """Read all stored runs, in the order of their file names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "runs").glob("*.json"))]


def write_report(out: Path, results: list[Result], failed: Iterable[str] = ()) -> list[Path]:
    """Write tables, plots and galleries.

    Args:
        out: folder of the benchmark.
        results: runs as ``read_results`` gives them, in the order of the table.
        failed: names of runs without a result.

    Returns:
        The files.
    """
    rows = [flat_row(result) for result in results]
    missing = sorted(failed)
    write_json(out / "results.json", {"rows": rows, "failed": missing})
    write_text(out / "table.md", markdown(rows, missing))
    files = [out / "results.json", out / "table.md"]
    by_data = defaultdict(list)
    for result in results:
        by_data[result["settings"]["data"]["name"]].append(result)
    for name, runs in by_data.items():
        files += _saved(out, f"roc_{name}.png", roc_plot(name, runs))
        files += _saved(out, f"pose_{name}.png", pose_plot(name, runs))
    files += _saved(out, "latency.png", latency_plot(results))
    for result in results:
        files += _saved(out, f"failures_{_label(result, '-')}.png", gallery(out, result))
    return files


def flat_row(result: Result) -> dict[str, Any]:
    """Make one row of ``results.json``: the settings that the figures depend on, and the figures."""
    settings = result["settings"]
    row = {
        "data": settings["data"]["name"],
        "method": settings["title"],
        "seed": settings["seed"],
        "weights": settings["network"].get("weights", ""),
        "steps": settings["arguments"].get("steps"),
        "device": settings["device"],
    }
    return {**row, **result["row"], **{f"{part}_s": result["seconds"].get(part) for part in _PARTS}}


def markdown(rows: list[dict[str, Any]], failed: list[str]) -> str:
    """Write the table as Markdown, with a note about its columns."""
    columns = {
        "data": lambda row: row["data"],
        "method": lambda row: row["method"],
        "seed": lambda row: str(row["seed"]),
        "px": lambda row: row["image_size"],
        "weights": lambda row: row["weights"] or "none",
        "steps": lambda row: str(row["steps"]) if row["steps"] else "default",
        "views": lambda row: str(row["views"]),
        "queries (defective)": lambda row: f"{row['queries']} ({row['defective']})",
        "image AUROC": lambda row: _interval(row, "image_auroc"),
        "pixel AUROC": lambda row: _number(row["pixel_auroc"]),
        "AUPRO": lambda row: _number(row["aupro"]),
        "poses within 1° (and 1%)": lambda row: _both(row, "within_1_deg", "within_1_deg_1_percent", _percent),
        "median error": lambda row: _both(row, "median_deg", "median_percent", _number, "°", "%"),
        "lost": lambda row: _percent(row["failed_poses"]),
        "low confidence": lambda row: _percent(row.get("doubtful_poses")),
        "s a query": lambda row: _number(row["seconds_per_query"]),
        "with true pose": _oracle,
    }
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(column(row) for column in columns.values()) + " |" for row in rows]
    text = "\n".join(lines) + "\n" + _NOTES
    return text + "".join(f"\n{name} failed; see its log in logs/.\n" for name in failed)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _interval(row: dict[str, Any], name: str) -> str:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    return "" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _both(row: dict[str, Any], first: str, second: str, text: Any, unit: str = "", other_unit: str = "") -> str:
    if row[first] is None:
        return ""
    return f"{text(row[first])}{unit} ({text(row[second])}{other_unit})"


def _oracle(row: dict[str, Any]) -> str:
    figures = [row[f"oracle_{name}"] for name in ("image_auroc", "pixel_auroc", "aupro")]
    return "" if figures[0] is None else " / ".join(_number(value) or "-" for value in figures)


def _label(result: Result, separator: str) -> str:
    settings = result["settings"]
    return separator.join([settings["data"]["name"], settings["method"], str(settings["seed"])])


def _legend(result: Result) -> str:
    return f"{result['settings']['title']}, seed {result['settings']['seed']}"


def _arrays(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (n,), and whether each query is defective (n,)."""
    queries = result["queries"]
    return np.array([query["score"] for query in queries]), np.array([query["label"] for query in queries]) > 0


def roc_points(scores: np.ndarray, defective: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates at every threshold from the highest; equal scores are one point."""
    levels = np.unique(scores)[::-1]
    alarms = scores[None] >= levels[:, None]
    false = np.concatenate([[0.0], alarms[:, ~defective].mean(1)])
    return false, np.concatenate([[0.0], alarms[:, defective].mean(1)])


def roc_plot(name: str, results: list[Result]) -> Figure | None:
    """Plot the image ROC of every run on one data set; None if no run has good and defective queries."""
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    for result in results:
        scores, defective = _arrays(result)
        if defective.any() and not defective.all():
            area = _number(result["row"]["image_auroc"])
            axes.step(*roc_points(scores, defective), where="post", label=f"{_legend(result)}: {area}")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="false alarms", ylabel="defects found", title=name)
    return _with_legend(figure)


def pose_plot(name: str, results: list[Result]) -> Figure | None:
    """Plot pose error against the rank of the score; None if no pose is known."""
    with_poses = [result for result in results if any("angle_deg" in query for query in result["queries"])]
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for number, result in enumerate(with_poses):
        scores, defective = _arrays(result)
        angles = np.array([query.get("angle_deg", np.nan) for query in result["queries"]])
        ranks = scores.argsort().argsort() / max(1, len(scores) - 1)
        for kind, marker in ((defective, "x"), (~defective, "o")):
            label = f"{_legend(result)}, {'defective' if marker == 'x' else 'good'}"
            axes.scatter(angles[kind].clip(1e-3), ranks[kind], 18, f"C{number}", marker, label=label, alpha=0.7)
    axes.axvline(1, color="0.7", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="pose error, degrees", ylabel="rank of the score, 1 is the highest", title=name)
    return _with_legend(figure)


def latency_plot(results: list[Result]) -> Figure | None:
    """Plot the mean seconds a query of each run, split into parts; None without runs."""
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.35 * len(results)), layout="constrained")
    names = [_label(result, ", ") for result in results]
    left = np.zeros(len(results))
    for part in (*_PARTS, "other"):
        seconds = [result["seconds"] for result in results]
        if part == "other":
            values = np.array([parts["total"] for parts in seconds]) - left
        else:
            values = np.array([parts.get(part, 0.0) for parts in seconds])
        axes.barh(names, values, left=left, label=part)
        left = left + values
    axes.invert_yaxis()
    axes.set(xlabel="mean seconds a query")
    return _with_legend(figure)


def gallery(out: Path, result: Result) -> Figure | None:
    """Show the worst-ranked queries of a run: query, reference if there is one, map; None without pictures."""
    pictures = [entry for entry in result["pictures"] if (out / entry["picture"]).is_file()]
    if not pictures:
        return None
    queries = {query["file"]: query for query in result["queries"]}
    figure, axes = plt.subplots(len(pictures), figsize=(6, 2.4 * len(pictures)), layout="constrained", squeeze=False)
    for panel, entry in zip(axes[:, 0], pictures, strict=True):
        query = queries[entry["query"]]
        error = f", pose {query['angle_deg']:.2f}° off" if "angle_deg" in query else ""
        panel.imshow(np.asarray(Image.open(out / entry["picture"])))
        panel.set_title(f"{entry['query']}, score {query['score']:.3g}{error}", fontsize=8)
        panel.set_axis_off()
    figure.suptitle(f"{result['settings']['data']['name']}: {_legend(result)}", fontsize=9)
    return figure


def _with_legend(figure: Figure) -> Figure | None:
    """Add a legend to the figure; None if no curve has a label."""
    axes = figure.axes[0]
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        plt.close(figure)
        return None
    axes.legend(handles, labels, fontsize=7)
    return figure


def _saved(out: Path, name: str, figure: Figure | None) -> list[Path]:
    """Write a figure and close it; nothing for None."""
    if figure is None:
        return []
    partial = out / f".{name}"
    figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)
    partial.replace(out / name)
    return [out / name]
