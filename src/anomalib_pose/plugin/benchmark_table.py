# SPDX-License-Identifier: Apache-2.0
"""The table that anomalib's benchmark writes, for models with different settings or metrics.

anomalib 2.7 expects of every run the columns of the first one, and loses all results where a run has others: a model
that finds poses has metrics that PatchCore has not. Nothing is imported before it is needed, as in
``visualization``.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

HOST = "anomalib.pipelines.benchmark.job"


def collect(results: list[dict[str, Any]]) -> "pd.DataFrame":
    """One row a run, with the columns of all runs; empty where a run has nothing to say.

    Args:
        results: names and values of each run.

    Raises:
        ValueError: if there is no run: each has failed, for the reason in the benchmark's log.
    """
    if not results:
        msg = "No run of the benchmark succeeded; runs/pipeline.log says why."
        raise ValueError(msg)
    return importlib.import_module("pandas").DataFrame(results)


def register_benchmark_table() -> None:
    """Make anomalib's benchmark collect its results so, if its module is imported."""
    job = getattr(sys.modules.get(HOST), "BenchmarkJob", None)
    if job is not None:
        job.collect = staticmethod(collect)
