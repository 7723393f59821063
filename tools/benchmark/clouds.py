# SPDX-License-Identifier: Apache-2.0
"""Time the preparation and rendering of clouds: python tools/benchmark/clouds.py DATA --category cable_gland.

DATA is a folder in raw MVTec 3D-AD's layout. For each cloud the tool times reading, removal of the plane, and rendering
with visibility. ``--loop`` also times visibility by a plain double loop over views and points in Python, and counts the
points for which the two results differ.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from anomalib_pose.data.files import write_json
from anomalib_pose.data.point_cloud.files import read_xyz
from anomalib_pose.data.point_cloud.preprocessing import isolate_object
from anomalib_pose.data.point_cloud.rendered_cloud import RenderedCloud, RenderSettings, render_organized
from anomalib_pose.data.point_cloud.sources import CloudSample, RawSource
from anomalib_pose.render.points import to_view_frame, view_rotations


def timed(function: Callable, *arguments: object) -> tuple[object, float]:
    start = time.perf_counter()
    result = function(*arguments)
    return result, 1e3 * (time.perf_counter() - start)


def visible_by_loop(points: Tensor, rotations: Tensor, size: int) -> list[set[int]]:
    """Collect the visible points of each view: the nearest point of each pixel."""
    visible_points = []
    mean = points.mean(0)
    for rotation in rotations:
        rotated = ((points - mean) @ rotation.T + mean).tolist()
        low, high = ([pick(axis) for axis in zip(*rotated, strict=True)] for pick in (min, max))
        center = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        distance = 0.7 * max(b - a for a, b in zip(low, high, strict=True)) / math.tan(math.pi / 6)
        nearest: dict[tuple[int, int], int] = {}
        for index, (x, y, z) in enumerate(rotated):
            scale = 512 / math.tan(math.pi / 6) / (distance - (z - center[2]))
            column = min(max(int((511.5 + (x - center[0]) * scale) * size / 1024), 0), size - 1)
            row = min(max(int((511.5 - (y - center[1]) * scale) * size / 1024), 0), size - 1)
            best = nearest.get((row, column))
            if best is None or z > rotated[best][2]:
                nearest[row, column] = index
        visible_points.append(set(nearest.values()))
    return visible_points


def count_differences(cloud: RenderedCloud, visible_points: list[set[int]]) -> int:
    """Count the points of all views whose visibility differs."""
    cells = cloud.valid.flatten()
    rendered = [set(view[cells].nonzero()[:, 0].tolist()) for view in cloud.visible]
    return sum(len(a ^ b) for a, b in zip(rendered, visible_points, strict=True))


def measure(source: RawSource, sample: CloudSample, *, loop: bool) -> dict[str, float]:
    xyz, reading = timed(read_xyz, sample.folder / "xyz" / f"{sample.name}.tiff")
    isolated, isolating = timed(isolate_object, xyz)
    cloud, rendering = timed(render_organized, isolated[0], source.settings)
    result = {"read": reading, "remove plane": isolating, "render": rendering, "points": float(cloud.valid.sum())}
    if loop:
        rotations = view_rotations(source.settings.about_x, source.settings.about_y)
        points = to_view_frame(cloud.points[cloud.valid].double())
        visible_points, looping = timed(visible_by_loop, points, rotations, source.settings.size)
        result |= {"visibility, plain loop": looping, "differing points": count_differences(cloud, visible_points)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--category", required=True, help="category of the data set")
    parser.add_argument("--clouds", type=int, default=10, help="number of clouds")
    parser.add_argument("--views", type=int, default=9, help="number of views: 5, 9 or 11")
    parser.add_argument("--loop", action="store_true", help="also time the plain loop")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--json", type=Path, help="output file of the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = RawSource(RenderSettings.of_views(arguments.views))
    samples = source.samples(arguments.data / arguments.category)[: arguments.clouds]
    source.load(samples[0])  # compiles
    results = [measure(source, sample, loop=arguments.loop) for sample in track(samples, transient=True)]
    report(results, arguments)


def report(results: list[dict[str, float]], arguments: argparse.Namespace) -> None:
    table = Table(title=f"{len(results)} clouds, {arguments.views} views, {arguments.threads} thread(s); milliseconds")
    for column in ("step", "median", "least", "most"):
        table.add_column(column, justify="left" if column == "step" else "right")
    figures = {}
    for name in results[0]:
        values = [result[name] for result in results]
        figures[name] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        table.add_row(name, *(f"{value:.0f}" for value in figures[name].values()))
    Console().print(table)
    if arguments.json:
        temporary = arguments.json.with_suffix(".tmp")
        write_json(temporary, figures)
        os.replace(temporary, arguments.json)  # noqa: PTH105


if __name__ == "__main__":
    main()
