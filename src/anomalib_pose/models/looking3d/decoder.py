# SPDX-License-Identifier: Apache-2.0
"""Correspondence-guided attention decoder and its heads; parameter names are those of the published weights."""

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.looking3d.attention import WIDTH, Block
from anomalib_pose.models.looking3d.encoder import CHANNELS, GRID

_FREQUENCIES = 10
"""Number of frequencies of the position code."""


def position_code(points: Tensor) -> Tensor:
    r"""Encode 3D positions (..., 63): :math:`[x, \sin(2^j x), \cos(2^j x)]` for j = 0..9 (section 4.3).

    Args:
        points: coordinates (..., 3) in the frame of the mesh.
    """
    parts = [points]
    for power in range(_FREQUENCIES):
        parts += [torch.sin(2**power * points), torch.cos(2**power * points)]
    return torch.cat(parts, -1)


def grid_code(grid: int = GRID) -> Tensor:
    """Encode row and column of each cell by sines and cosines (g * g, 128), equal at equal places of all grids.

    Args:
        grid: cells along a side.
    """
    frequency = 100.0 ** (-torch.arange(CHANNELS // 4) / (CHANNELS // 4))
    angle = (torch.arange(grid) * (GRID / grid))[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], -1)
    return torch.cat([line[:, None].expand(-1, grid, -1), line[None].expand(grid, -1, -1)], -1).flatten(0, 1)


class Transformer(nn.Module):
    """Three blocks between two linear maps, 128 to 512 to 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Linear(CHANNELS, WIDTH)
        self.transformer_blocks = nn.ModuleList(Block() for _ in range(3))
        self.proj_out = nn.Linear(WIDTH, CHANNELS)

    @property
    def blocks(self) -> list[Block]:
        """The three blocks."""
        return cast("list[Block]", list(self.transformer_blocks))


class Head(nn.Module):
    """Linear maps with ReLU between them.

    Args:
        widths: channels at the input, between the maps, and at the output.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output of the last map."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)


class Decoder(nn.Module):
    """Correspondence-guided attention: query cells attend to the reference cells they match (section 4.3).

    Args:
        query_position: add position encodings to the query's cells; the paper has none. Their linear map starts at
            zero, so that published weights have equal outputs with and without it.
        grid: cells along a side.
    """

    cell_code: Tensor

    def __init__(self, *, query_position: bool = False, grid: int = GRID) -> None:
        super().__init__()
        self.token = nn.Embedding(1, CHANNELS)
        self.crossatten = Transformer()
        self.map_to_pos_enc = nn.Linear(3 + 6 * _FREQUENCIES, CHANNELS)
        self.cls_layer = Head(CHANNELS, 256, 1)
        self.bbox_layer = Head(CHANNELS, 256, 256, 4)
        for part in self.parameters():
            if part.ndim > 1:
                nn.init.xavier_uniform_(part)
        self.query_position = None
        if query_position:
            self.query_position = nn.Linear(CHANNELS, WIDTH, bias=False)
            nn.init.zeros_(self.query_position.weight)
            self.register_buffer("cell_code", grid_code(grid), persistent=False)

    def context(self, features: Tensor, xyz: Tensor) -> Tensor:
        """Concatenate features and position codes of reference cells (..., M, 256).

        Args:
            features: (..., M, 128).
            xyz: coordinates in the frame of the mesh (..., M, 3), -1 where a cell is empty.
        """
        # half precision is too coarse for the highest frequency
        code = self.map_to_pos_enc(position_code(xyz.float()))
        return torch.cat([features, code.to(features)], -1)

    def tokens(self, features: Tensor, places: Tensor | None = None) -> Tensor:
        """Compose the class token and the tokens of query cells (B, 1 + n, 512).

        Args:
            features: features of the query's cells (B, n, 128).
            places: indices of these cells (B, n); None for all cells in order.
        """
        token = self.token.weight.expand(features.shape[0], 1, -1).to(features)
        tokens = self.crossatten.proj_in(torch.cat([token, features], 1))
        if self.query_position is None:
            return tokens
        code = self.query_position(self.cell_code if places is None else self.cell_code[places])
        return tokens + functional.pad(code, (0, 0, 1, 0))

    def forward(
        self, features: Tensor, context: Tensor, keys: Tensor | None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute logits (B,) and boxes before the sigmoid (B, 4); skip tokens that do not influence them.

        Args:
            features: features of the query's cells (B, n, 128).
            context: context of the reference's cells (B or 1, M, 256); see ``context``.
            keys: indices of the reference cells that each query cell attends to (B, n, k); None for all.
            places: see ``tokens``.
        """
        *blocks, last = self.crossatten.blocks
        tokens = self.tokens(features, places)
        for block in blocks:
            tokens = block(tokens, context, None) if keys is None else block.gathered(tokens, context, keys)
        return self.heads(self.crossatten.proj_out(last.class_token(tokens, context)[:, 0]))

    def published(
        self, features: Tensor, context: Tensor, keys: Tensor | None, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the result of ``forward`` in the published form: masked keys, all rows of all blocks.

        This form defines the correct result. It needs several times the time and memory of ``forward``.

        Args:
            features: see ``forward``.
            context: see ``forward``.
            keys: see ``forward``.
            places: see ``forward``.
        """
        mask = None
        if keys is not None:
            mask = torch.zeros(*keys.shape[:2], context.shape[1], dtype=torch.bool, device=keys.device)
            # the class token attends to everything
            mask = functional.pad(mask.scatter(2, keys, value=True), (0, 0, 1, 0), value=True)
        tokens = self.tokens(features, places)
        for block in self.crossatten.blocks:
            tokens = block(tokens, context, mask)
        return self.heads(self.crossatten.proj_out(tokens)[:, 0])

    def heads(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (B,) and boxes before the sigmoid (B, 4).

        Args:
            token: class token (B, 128).
        """
        return self.cls_layer(token)[:, 0], self.bbox_layer(token)
