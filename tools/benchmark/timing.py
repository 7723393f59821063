# SPDX-License-Identifier: Apache-2.0
"""Measurement of the seconds that a function takes, for the benchmarks in this folder."""

import statistics
import time
from collections.abc import Callable


def measure(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Measure median seconds of this process's CPU time and of wall time, after one call that does not count."""
    function()
    cpu, wall = [], []
    for _ in range(repeats):
        start_cpu, start_wall = time.process_time(), time.perf_counter()
        function()
        cpu.append(time.process_time() - start_cpu)
        wall.append(time.perf_counter() - start_wall)
    return {"cpu_median": statistics.median(cpu), "wall_median": statistics.median(wall)}
