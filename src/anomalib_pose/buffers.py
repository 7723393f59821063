# SPDX-License-Identifier: Apache-2.0
"""Resizing of buffers whose size the fit determines, before a state dict is loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def resize_buffers(module: nn.Module, names: Iterable[str], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Resize buffers to the shapes and dtypes of a state dict, because PyTorch only loads tensors of equal size.

    Call it in ``_load_from_state_dict`` of a module. A buffer stays unchanged if the state dict lacks it or
    differs in its number of dimensions; PyTorch then reports it.

    Args:
        module: owner of the buffers.
        names: names of the buffers.
        state_dict: state dict to be loaded.
        prefix: prefix of the names of this module in the state dict.
    """
    for name in names:
        loaded, own = state_dict.get(prefix + name), getattr(module, name)
        if isinstance(loaded, Tensor) and loaded.ndim == own.ndim:
            setattr(module, name, torch.empty_like(loaded, device=own.device))
