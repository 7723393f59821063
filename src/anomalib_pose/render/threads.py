# SPDX-License-Identifier: Apache-2.0
"""Division of the processor's threads between PyTorch's operations and this package's kernels.

A pose search and a fit consist of thousands of small PyTorch operations between kernels. PyTorch spreads an operation
over OpenMP's threads, which wait actively for each other. Beside other busy processes, one of these threads is often
suspended, and the waiting ones burn the time that it needs: a query took 5 to 10 times the processor time of a single
thread. The threads of the kernels sleep while they wait.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_threads: ContextVar[int] = ContextVar("threads", default=0)


def thread_count() -> int:
    """Return the number of threads of kernels: PyTorch's, outside ``small_operations``."""
    return _threads.get() or torch.get_num_threads()


@contextmanager
def small_operations() -> Iterator[None]:
    """Run PyTorch's operations on the calling thread; kernels keep their number of threads."""
    before = torch.get_num_threads()
    if before == 1:  # `torch.set_num_threads` starts OpenMP, which does not survive a fork
        yield
        return
    token = _threads.set(before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _threads.reset(token)
