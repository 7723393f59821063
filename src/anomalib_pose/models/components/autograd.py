# SPDX-License-Identifier: Apache-2.0
"""Autograd inside Lightning's loops."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def test_time_grad() -> Iterator[None]:
    """Enable autograd inside any Lightning loop, whether the loop runs under ``no_grad`` or inference mode."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield
