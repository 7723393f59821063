# SPDX-License-Identifier: Apache-2.0
"""Buffers whose size fitting decides."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def resize_buffers(module: nn.Module, names: Iterable[str], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Give buffers the size and the dtype that a checkpoint has for them; PyTorch loads into tensors of its size only.

    For a module's ``_load_from_state_dict``. What is missing, or has another number of dimensions, is left as it is, so
    that PyTorch reports it.

    Args:
        module: has the buffers.
        names: of the buffers.
        state_dict: the checkpoint.
        prefix: of the module's names in the checkpoint.
    """
    for name in names:
        loaded, own = state_dict.get(prefix + name), getattr(module, name)
        if isinstance(loaded, Tensor) and loaded.ndim == own.ndim:
            setattr(module, name, torch.empty_like(loaded, device=own.device))
