# SPDX-License-Identifier: Apache-2.0
"""Buffers whose size the fit determines, and buffers in double precision."""

from collections.abc import Callable, Iterable, Mapping
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


class DoubleBuffers(nn.Module):
    """Module whose float64 buffers stay float64: a change of the model's dtype moves them between devices alone."""

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "DoubleBuffers":
        """Move the buffers to the device of the conversion, in their own dtype."""
        del args, kwargs
        for name, buffer in self.named_buffers(recurse=False):
            self.register_buffer(name, buffer.to(fn(torch.zeros(1, device=buffer.device)).device))
        return self
