# SPDX-License-Identifier: Apache-2.0
"""Result table of anomalib's benchmark, for models with different settings or metrics.

anomalib 2.7 expects the columns of the first run in every run, and loses all results if a run has other columns. A
scene model has pose metrics that PatchCore lacks, so both in one benchmark need this table. The module imports nothing
before it is needed, as ``visualization`` does.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

HOST = "anomalib.pipelines.benchmark.job"


def collect(results: list[dict[str, Any]]) -> "pd.DataFrame":
    """Make a table with one row for each run and the columns of all runs; a cell without a value is empty.

    Args:
        results: names and values of each run.

    Raises:
        ValueError: if there is no run, because every run has failed. The benchmark's log has the reasons.
    """
    if not results:
        msg = "Expected results of at least one run of the benchmark, but every run failed: read runs/pipeline.log."
        raise ValueError(msg)
    return importlib.import_module("pandas").DataFrame(results)


def register_benchmark_table() -> None:
    """Make anomalib's benchmark use ``collect``, if its module is imported."""
    job = getattr(sys.modules.get(HOST), "BenchmarkJob", None)
    if job is not None:
        job.collect = staticmethod(collect)
