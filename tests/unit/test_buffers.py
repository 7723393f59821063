# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from anomalib_pose.buffers import resize_buffers


class Remembers(nn.Module):
    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.register_buffer("rows", torch.arange(2.0 * count).reshape(count, 2))
        self.register_buffer("fixed", torch.full((3,), float(count)))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        resize_buffers(self, ("rows",), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_checkpoint_decides_how_many_rows_there_are():
    saved, loaded = nn.Sequential(nn.Identity(), Remembers(5)), nn.Sequential(nn.Identity(), Remembers())
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded[1].rows, torch.arange(10.0).reshape(5, 2))
    assert torch.equal(loaded[1].fixed, torch.full((3,), 5.0))


def test_a_checkpoint_decides_the_dtype():
    state = Remembers(5).half().state_dict()
    loaded = Remembers()
    loaded.load_state_dict(state)
    assert loaded.rows.dtype == torch.float16


def test_what_does_not_fit_is_reported_and_leaves_the_buffer_as_it_was():
    loaded = Remembers(1)
    with pytest.raises(RuntimeError, match="size mismatch for rows"):
        loaded.load_state_dict({"rows": torch.zeros(7), "fixed": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded.load_state_dict({"fixed": torch.zeros(3)})
    assert torch.equal(loaded.rows, torch.tensor([[0.0, 1.0]]))
