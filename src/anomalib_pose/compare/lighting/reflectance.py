# SPDX-License-Identifier: Apache-2.0
"""Reflectance of images: their colors without the light (PIAD, CVPR 2025)."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from anomalib_pose.render.reflectance import OFFSET, reflectance
from anomalib_pose.weights import read_weights

_BORDER, _INNER = 6, 9
_SHAPES = ((32, 3, 3, 3), (32,), (32, 32, 3, 3), (32,), (32, 32, 3, 3), (32,), (4, 32, 3, 3), (4,))


class ReflectanceNetwork(nn.Module):
    """Published decomposition network: four convolutions whose first three outputs are the reflectance.

    Its receptive field of 9 pixels overlaps the border of the image. As published, the outer 6 pixels take the color of
    pixel (9, 9).

    Args:
        weights_path: file with a state dict of the published layout: weights and biases of four convolutions in their
            order, under any names.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file does not hold such weights.
    """

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        channels = (3, 32, 32, 32, 4)
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            last = number == len(channels) - 2
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU() if last else nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self._load(Path(weights_path))
        self.requires_grad_(requires_grad=False)

    def _load(self, path: Path) -> None:
        weights = list(_tensors(read_weights(path, "the weights of the decomposition network")))
        shapes = tuple(tuple(tensor.shape) for tensor in weights)
        if shapes != _SHAPES:
            msg = f"{path} should hold the weights and biases of four convolutions, {_SHAPES}, found {shapes[:12]}."
            raise ValueError(msg)
        with torch.no_grad():
            for parameter, tensor in zip(self.parameters(), weights, strict=True):
                parameter.copy_(tensor)

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Compute the reflectance of images of more than 18 pixels a side.

        Args:
            image: RGB in [0, 1].
        """
        decomposed = self.layers(image)[:, :3].clamp(0, 1)
        framed = decomposed[:, :, _INNER : _INNER + 1, _INNER : _INNER + 1].expand_as(decomposed).clone()
        inside = (..., slice(_BORDER, -_BORDER), slice(_BORDER, -_BORDER))
        framed[inside] = decomposed[inside]
        return framed


class Reflectance(nn.Module):
    """Computes the reflectance of images, by the published network if its weights are given, else by the closed form.

    Args:
        weights_path: see ``ReflectanceNetwork``; empty for the closed form.
        offset: offset of the closed form; see ``render.reflectance``.
    """

    def __init__(self, weights_path: str = "", offset: float = OFFSET) -> None:
        super().__init__()
        self.offset = offset
        self.network = ReflectanceNetwork(weights_path) if weights_path else None

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Compute the reflectance.

        Args:
            image: RGB in [0, 1].
        """
        if self.network is None:
            return reflectance(image, self.offset)
        decomposed: Tensor = self.network(image)
        return decomposed


def _tensors(state: Any) -> Iterator[Tensor]:
    """Iterate over the tensors of nested dictionaries in their order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
