# SPDX-License-Identifier: Apache-2.0
"""Measure the time of the CPU rasterizer and of the structural similarity.

python tools/benchmark/rasterizer.py --json out.json
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from anomalib_pose.geometry.camera import Camera
from anomalib_pose.render import Gaussians, make_rasterizer, warmup
from anomalib_pose.render.ssim import ssim

SIZES = ((10_000, 200), (50_000, 400))


def make_scene(count: int, size: int, seed: int = 0, sigma: float = 2.5) -> tuple[Gaussians, Camera]:
    """Make flat Gaussians of about ``sigma`` px on a bumpy sphere that fills 60 % of the image.

    They are denser than the Gaussians of a fitted scene.
    """
    g = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    radius = 1 + 0.15 * torch.sin(5 * direction[:, 0]) * torch.cos(4 * direction[:, 1])
    focal, distance = 1.2 * size, 4.0
    scales = sigma * distance / focal * torch.exp(0.5 * torch.randn(count, 3, generator=g))
    scales[:, 2] *= 0.3
    up = torch.tensor([0.0, 0.0, 1.0])
    # the rotation that takes z to the normal: flat along the surface
    quats = torch.cat([1 + direction @ up[:, None], torch.linalg.cross(up.expand_as(direction), direction)], 1)
    quats += 0.05 * torch.randn(count, 4, generator=g)
    opacities = torch.sigmoid(1.5 * torch.randn(count, generator=g) + 1)
    waves = direction * torch.tensor([6.0, 5.0, 7.0]) + torch.arange(3.0)
    colors = 0.5 + 0.5 * torch.sin(waves + 0.2 * torch.randn(count, 3, generator=g))
    view = torch.eye(4)
    cos, sin = math.cos(0.4), math.sin(0.4)
    view[:3] = torch.tensor([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, distance]])
    intrinsics = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return (
        Gaussians(direction * radius[:, None], quats, scales, opacities, colors),
        Camera(torch.linalg.inv(view), intrinsics, size, size),
    )


def measure(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Measure milliseconds of this thread's CPU time, which other processes hardly change, and of wall time."""
    function()
    cpu, wall = [], []
    for _ in range(repeats):
        start_cpu, start_wall = time.thread_time(), time.perf_counter()
        function()
        cpu.append(1e3 * (time.thread_time() - start_cpu))
        wall.append(1e3 * (time.perf_counter() - start_wall))
    return {"cpu_median": statistics.median(cpu), "cpu_min": min(cpu), "wall_median": statistics.median(wall)}


def rasterizer_functions(count: int, size: int) -> dict[str, Callable[[], object]]:
    gaussians, camera = make_scene(count, size)
    rasterizer = make_rasterizer("cpu")
    names = ("means", "quats", "scales", "opacities", "colors")
    leaves = [getattr(gaussians, name).requires_grad_() for name in names]
    pose = camera.camera_to_world.requires_grad_()
    g = torch.Generator().manual_seed(1)
    gradients = [torch.randn(shape, generator=g) for shape in ((size, size, 3), (size, size), (size, size))]

    def forward() -> object:
        with torch.no_grad():
            return rasterizer(gaussians, camera)

    def both() -> object:
        output = rasterizer(gaussians, camera)
        return torch.autograd.grad((output.rgb, output.depth, output.alpha), [*leaves, pose], gradients)

    label = f"splats {count // 1000}k, {size} px"
    return {f"{label}, forward": forward, f"{label}, forward + backward": both}


def ssim_functions(size: int) -> dict[str, Callable[[], object]]:
    g = torch.Generator().manual_seed(2)
    a, b = torch.rand(size, size, 3, generator=g).requires_grad_(), torch.rand(size, size, 3, generator=g)

    def forward() -> object:
        with torch.no_grad():
            return ssim(a, b)

    def both() -> object:
        return torch.autograd.grad(ssim(a, b), a)

    return {f"SSIM {size} px, forward": forward, f"SSIM {size} px, forward + backward": both}


def report(results: dict[str, dict[str, float]], threads: int) -> None:
    table = Table(title=f"Milliseconds on {threads} thread(s)")
    columns = ("cpu_median", "cpu_min", "wall_median")
    table.add_column("function")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, result in results.items():
        table.add_row(name, *(f"{result[column]:.1f}" for column in columns))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="number of runs of each function")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of PyTorch; CPU time covers one thread, wall time all"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warmup()
    results = {}
    for count, size in SIZES:
        for name, function in (rasterizer_functions(count, size) | ssim_functions(size)).items():
            results[name] = measure(function, arguments.repeats)
    report(results, arguments.threads)
    if arguments.json:
        temporary = arguments.json.with_suffix(".tmp")
        temporary.write_text(json.dumps({"threads": arguments.threads, "milliseconds": results}, indent=2))
        os.replace(temporary, arguments.json)  # noqa: PTH105


if __name__ == "__main__":
    main()
