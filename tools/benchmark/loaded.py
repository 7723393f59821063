# SPDX-License-Identifier: Apache-2.0
"""Measure how much longer a query takes beside busy processes than alone.

    python tools/benchmark/loaded.py model.ckpt PHOTOS --weights FILE --busy 4
    python tools/benchmark/loaded.py model.ckpt PHOTOS --weights FILE --busy 4 --openmp

The script predicts the photographs alone, then beside processes that do nothing but compute. It prints seconds of wall
time and of processor time for a query, and the growth of the wall time. ``share`` is the growth that the scheduler
causes: that of a loop on one thread that needs as much processor time as a query, measured in turns with the queries.
``--openmp`` leaves PyTorch's operations on all threads, as a model without ``small_operations`` would.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console

from anomalib_pose.data.images import read_image
from anomalib_pose.data.listing import image_files
from anomalib_pose.models.components import SceneDetector, test_time_grad
from anomalib_pose.models.localization import load_fitted


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that compute without pause."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def loop_seconds(processor_seconds: float) -> float:
    """Return the wall time of a loop that needs this processor time."""
    start, start_thread = time.perf_counter(), time.thread_time()
    while time.thread_time() - start_thread < processor_seconds:
        pass
    return time.perf_counter() - start


def query_seconds(
    detector: SceneDetector, images: list[torch.Tensor], processor_seconds: float
) -> tuple[float, float, float]:
    """Return the median seconds of wall time and of processor time for a query, and of wall time for the loop."""
    wall, cpu, loop = [], [], []
    for image in images:
        start_wall, start_cpu = time.perf_counter(), time.process_time()
        with test_time_grad():
            detector(image[None].clone())
        wall.append(time.perf_counter() - start_wall)
        cpu.append(time.process_time() - start_cpu)
        loop.append(loop_seconds(processor_seconds))
    return statistics.median(wall), statistics.median(cpu), statistics.median(loop)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of a fitted scene model")
    parser.add_argument("photographs", type=Path, help="folder of queries of the size of the training views")
    parser.add_argument("--weights", default="", help="file with the weights of the backbone")
    parser.add_argument("--busy", type=int, default=4, help="number of busy processes")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of this process")
    parser.add_argument("--queries", type=int, default=15, help="number of queries in a row")
    parser.add_argument("--openmp", action="store_true", help="leave PyTorch's operations on all threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_fitted(arguments.checkpoint, **({"weights_path": arguments.weights} if arguments.weights else {}))
    images = [read_image(path)[0] for path in image_files(arguments.photographs)[: arguments.queries]]
    one_thread = mock.patch("torch.set_num_threads") if arguments.openmp else nullcontext()
    with one_thread:
        query_seconds(model.model, images[:2], 0)  # compiles the kernels
        needed = query_seconds(model.model, images[:2], 0)[1]
        alone = query_seconds(model.model, images, needed)
        with busy_processes(arguments.busy):
            beside = query_seconds(model.model, images, needed)
    console = Console()
    console.print(f"alone:  {alone[0]:.2f} s, {alone[1]:.2f} s of processor time (load {os.getloadavg()[0]:.1f})")
    console.print(f"beside {arguments.busy}: {beside[0]:.2f} s, {beside[1]:.2f} s of processor time")
    console.print(f"growth: {beside[0] / alone[0]:.2f}; share: {beside[2] / alone[2]:.2f}")


if __name__ == "__main__":
    main()
