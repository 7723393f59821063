# SPDX-License-Identifier: Apache-2.0
"""Compilation of CPU kernels with numba, and their execution on several threads.

Kernels release the GIL and process a range ``start..stop`` of independent items, so plain Python threads run them.
Numba's own threading layers are not used: none of them is both safe to call from several threads and safe after a fork.
The number of threads is PyTorch's: ``torch.set_num_threads``, ``OMP_NUM_THREADS``, one in a ``DataLoader`` worker; see
``threads`` for operations beside kernels.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, no_type_check

import llvmlite.ir
import numpy as np
from numba import config, njit, types
from numba.extending import intrinsic

from anomalib_pose.render.kernel_cache import is_private, own_folder
from anomalib_pose.render.threads import thread_count

logger = logging.getLogger(__name__)

# `afn`, `nnan`, `ninf` and `reassoc` would break the rounding trick of `exp`. Kernels that vectorize a sum over lanes
# add `reassoc`.
ELEMENTWISE = frozenset({"contract", "nsz", "arcp"})
REDUCTION = ELEMENTWISE | {"reassoc"}

_CHUNKS_PER_THREAD = 4
_LONG_WAIT = 0.5  # fraction of its own working time that a thread may wait for the others
_LONGEST_PAUSE = 127  # calls
_SHARED_SECONDS = 0.003  # shorter work is not shared: beside busy processes, each wait for a thread takes as long
_ANNOUNCE_AFTER_SECONDS = 1.5

_lock = threading.RLock()
_pool: ThreadPoolExecutor | None = None


def kernel(flags: frozenset[str] = ELEMENTWISE) -> Callable[[Callable], Any]:
    """Make a decorator that compiles a function at its first call and caches the result on disk if possible.

    The cache is numba's, or a folder of this user where others could write numba's. Without a private folder, kernels
    compile in every process.

    ``error_model="numpy"`` matters: the branch for a division by zero would prevent vectorization.

    Args:
        flags: LLVM's fast-math flags.
    """

    def decorate(function: Callable) -> Any:
        options = {"nogil": True, "fastmath": set(flags), "error_model": "numpy"}
        return _cached(function, options) or njit(**options)(function)

    return decorate


def _cached(function: Callable, options: dict[str, Any]) -> Any:
    """Compile a function with a cache in a private folder; return None if there is none."""
    try:
        compiled = njit(cache=True, **options)(function)
    except RuntimeError:  # numba has no writable folder for its cache
        compiled = None
    if compiled is not None and is_private(Path(compiled.stats.cache_path)):
        return compiled
    folder = own_folder()
    if folder is None:
        _report_missing_cache()
        return None
    with _lock:
        chosen, config.CACHE_DIR = config.CACHE_DIR, str(folder)
        try:
            compiled = njit(cache=True, **options)(function)
        except RuntimeError:
            return None
        finally:
            config.CACHE_DIR = chosen
    return compiled


@cache
def _report_missing_cache() -> None:
    """Log once that kernels compile in every process."""
    logger.warning(
        "Compiled kernels are not kept between runs, because there is no folder that only this user can write: set "
        "NUMBA_CACHE_DIR to such a folder."
    )


@intrinsic
@no_type_check
def _as_float(typing_context, value):  # noqa: ANN001, ANN202, ARG001
    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202, ARG001
        return builder.bitcast(arguments[0], llvmlite.ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
@no_type_check
def _as_int(typing_context, value):  # noqa: ANN001, ANN202, ARG001
    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202, ARG001
        return builder.bitcast(arguments[0], llvmlite.ir.IntType(32))

    return types.int32(types.float32), generate


_LOG2_E = np.float32(math.log2(math.e))
_ROUND = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits of the mantissa


@kernel()
@no_type_check
def exp(x):  # noqa: ANN001, ANN201
    """Compute the exponential of a float32 in about -87..88, with a relative error of 2e-7.

    Loops that call this function vectorize without a vector math library.
    """
    shifted = x * _LOG2_E + _ROUND
    f = x * _LOG2_E - (shifted - _ROUND)
    p = np.float32(1.34004322e-3)
    p = p * f + np.float32(9.6760371e-3)
    p = p * f + np.float32(5.55032721e-2)
    p = p * f + np.float32(2.40221074e-1)
    p = p * f + np.float32(6.93147207e-1)
    p = p * f + np.float32(1.0)
    return _as_float(_as_int(p) + (_as_int(shifted) << np.int32(23)))


def for_ranges(function: Callable[[int, int], Any], count: int, grain: int = 1) -> None:
    """Call ``function(start, stop)`` for ranges that cover ``0..count``, on ``thread_count`` threads.

    The calling thread does a part of the work; the others join if the remaining work takes longer than 3 ms.

    Args:
        function: processes a range; its result does not depend on how ``0..count`` is split.
        count: number of items.
        grain: ranges start at multiples of this number.
    """
    units = -(-count // grain)
    threads = min(thread_count(), units)
    if threads <= 1:
        if count:
            function(0, count)
        return
    parts = min(units, threads * _CHUNKS_PER_THREAD)
    cuts = [min(count, part * units // parts * grain) for part in range(parts + 1)]
    position = iter(range(parts))

    def work(limit: int = parts) -> None:
        for part in islice(position, limit):  # `next` on a range's iterator is atomic under the GIL
            function(cuts[part], cuts[part + 1])

    start = time.perf_counter()
    work(1)
    remaining = (time.perf_counter() - start) * (parts - 1)
    if remaining < _SHARED_SECONDS or not _sharing.pays():
        work()
        return
    jobs = [_thread_pool().submit(work) for _ in range(threads - 1)]
    work()
    finished = time.perf_counter()
    for job in jobs:
        if not job.cancel():  # a thread that has not started yet has nothing left to do
            job.result()
    _sharing.record(finished - start, time.perf_counter() - finished)


class _Sharing:
    """Decides whether work is shared: beside busy processes, waiting for other threads takes longer than the work."""

    def __init__(self) -> None:
        self.pause = 0
        self.skipped = 0

    def pays(self) -> bool:
        """Return whether to share the next work; after a long wait, some calls do not share theirs."""
        self.skipped += 1
        return self.skipped > self.pause

    def record(self, worked: float, waited: float) -> None:
        """Record the seconds that the calling thread has worked, and those that it has waited for the others."""
        self.skipped = 0
        self.pause = min(2 * self.pause + 1, _LONGEST_PAUSE) if waited > _LONG_WAIT * worked else self.pause // 2


_sharing = _Sharing()


def _thread_pool() -> ThreadPoolExecutor:
    """Return the pool of this process."""
    global _pool  # noqa: PLW0603
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="anomalib_pose")
        return _pool


def _reset_pool() -> None:
    """Replace the parent's pool and lock in a forked process, where the parent's threads do not exist."""
    global _pool, _lock  # noqa: PLW0603
    _pool = None
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_pool)


@contextmanager
def announced_compilation(kernels: str) -> Iterator[None]:
    """Log a line while kernels compile, if the compilation takes longer than 1.5 s.

    Args:
        kernels: name of the kernels, for the log line.
    """
    start = time.perf_counter()
    message = "Compiling the CPU kernels of %s. This takes about half a minute, once for this machine."
    timer = threading.Timer(_ANNOUNCE_AFTER_SECONDS, logger.info, (message, kernels))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    elapsed = time.perf_counter() - start
    if elapsed > _ANNOUNCE_AFTER_SECONDS:
        logger.info("Compiled the CPU kernels of %s in %.0f s.", kernels, elapsed)
