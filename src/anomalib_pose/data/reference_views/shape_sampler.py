# SPDX-License-Identifier: Apache-2.0
"""Sampler that keeps queries of one shape together."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class ShapeSampler(Sampler[int]):
    """Sampler that yields each item once: random runs of items of one shape, in random order.

    Args:
        shapes: name of each item's shape.
        together: length of a run; the last run of a shape may be shorter.

    Raises:
        ValueError: if ``together`` is below 1.
    """

    def __init__(self, shapes: Sequence[str], together: int) -> None:
        if together < 1:
            msg = f"The number of queries of one shape in a run should be 1 or more, got {together}."
            raise ValueError(msg)
        self.together = together
        self.members: dict[str, list[int]] = {}
        for index, shape in enumerate(shapes):
            self.members.setdefault(shape, []).append(index)

    def __len__(self) -> int:
        return sum(map(len, self.members.values()))

    def __iter__(self) -> Iterator[int]:
        runs = []
        for members in self.members.values():
            order = [members[i] for i in torch.randperm(len(members)).tolist()]
            runs += [order[start : start + self.together] for start in range(0, len(order), self.together)]
        for number in torch.randperm(len(runs)).tolist():
            yield from runs[number]
