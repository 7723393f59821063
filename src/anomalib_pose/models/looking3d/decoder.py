# SPDX-License-Identifier: Apache-2.0
"""The correspondence-guided attention decoder and its heads; the names are those of the published weights."""

import itertools
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.looking3d.encoder import CHANNELS, GRID

WIDTH = 512
"""Channels of a token."""
HEADS = 8
CONTEXT = 2 * CHANNELS
"""Channels of a reference cell: its feature and the code of its position."""
_FREQUENCIES = 10
_CHUNK = 128
"""Query cells that are attended for at once: what they gather stays in the processor's cache."""


def position_code(points: Tensor) -> Tensor:
    """Coordinates with sines and cosines of twice, four times, ... themselves, (..., 63) (section 4.3).

    Args:
        points: coordinates (..., 3) in the frame of the mesh.
    """
    parts = [points]
    for power in range(_FREQUENCIES):
        parts += [torch.sin(2**power * points), torch.cos(2**power * points)]
    return torch.cat(parts, -1)


def grid_code() -> Tensor:
    """Sines and cosines of row and column of every cell of the grid, (1024, 128)."""
    frequency = 100.0 ** (-torch.arange(CHANNELS // 4) / (CHANNELS // 4))
    angle = torch.arange(GRID)[:, None] * frequency
    line = torch.cat([angle.sin(), angle.cos()], -1)
    return torch.cat([line[:, None].expand(-1, GRID, -1), line[None].expand(GRID, -1, -1)], -1).flatten(0, 1)


class Attention(nn.Module):
    """Attention with eight heads.

    Args:
        context: channels of what is attended to.
    """

    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """What queries read from the context (B, n, 512).

        Args:
            queries: tokens (B, n, 512).
            context: what is attended to (B or 1, M, C).
            mask: true where a query may attend to a key (B, n, M), or None for everywhere.
        """
        q, k, v = (_heads(part) for part in (self.to_q(queries), self.to_k(context), self.to_v(context)))
        read = functional.scaled_dot_product_attention(
            q,
            k.expand(q.shape[0], -1, -1, -1),
            v.expand(q.shape[0], -1, -1, -1),
            None if mask is None else mask[:, None],
        )
        return self.to_out(read.transpose(1, 2).flatten(2))

    def absorbed(self, queries: Tensor, gathered: Tensor) -> Tensor:
        """The same where every query has a context of its own, (B, n, 512).

        The matrices of keys and values are applied to the few queries instead of the many keys:
        ``q (C K)' = (q K') C'`` and ``a (C V) = (a C) V``. Nothing of the context is then to be projected or stored.

        Args:
            queries: tokens (B, n, 512).
            gathered: what each query attends to (B, n, k, C), or (B or 1, 1, M, C) for all of them.
        """
        channels = gathered.shape[-1]
        q = self.to_q(queries).unflatten(-1, (HEADS, -1))
        keys, values = (part.weight.view(HEADS, -1, channels) for part in (self.to_k, self.to_v))
        wanted = torch.einsum("bnhd,hdc->bnhc", q, keys) / math.sqrt(q.shape[-1])
        weights = (wanted @ gathered.transpose(-1, -2)).softmax(-1)
        read = torch.einsum("bnhc,hdc->bnhd", weights @ gathered, values)
        return self.to_out(read.flatten(-2))


def _heads(tokens: Tensor) -> Tensor:
    """(B, n, 512) as (B, 8, n, 64)."""
    return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class GatedUnit(nn.Module):
    """Linear map whose one half is gated by the other through a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 8 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of four times the width.

        Args:
            tokens: (..., 512).
        """
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    """Gated unit and linear map."""

    def __init__(self) -> None:
        super().__init__()
        # the middle is where the published network drops nothing out
        self.net = nn.Sequential(GatedUnit(), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (..., 512)."""
        return self.net(tokens)


class Block(nn.Module):
    """Self-attention, attention to the reference, feed-forward, each on normalised tokens and added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention(WIDTH)
        self.ff = FeedForward()
        self.attn2 = Attention(CONTEXT)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def read_tokens(self, tokens: Tensor, rows: int | None = None) -> Tensor:
        """The first ``rows`` tokens, or all, after self-attention to all of them (B, n, 512).

        Args:
            tokens: class token and query cells (B, 1025, 512).
            rows: number of tokens that are wanted, or None for all.
        """
        normed = self.norm1(tokens)
        return tokens[:, :rows] + self.attn1(normed[:, :rows], normed)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """All tokens, as published: keys that a token may not attend to are masked.

        Args:
            tokens: class token and query cells (B, 1025, 512).
            context: reference cells (B or 1, M, 256).
            mask: true where a token may attend to a key (B, 1025, M), or None for everywhere.
        """
        tokens = self.read_tokens(tokens)
        tokens = tokens + self.attn2(self.norm2(tokens), context, mask)
        return tokens + self.ff(self.norm3(tokens))

    def gathered(self, tokens: Tensor, context: Tensor, keys: Tensor) -> Tensor:
        """The same with the context gathered that each query cell attends to.

        Args:
            tokens: class token and query cells (B, 1025, 512).
            context: reference cells (B or 1, M, 256).
            keys: numbers of the reference cells that each query cell attends to (B, 1024, k).
        """
        tokens = self.read_tokens(tokens)
        normed = self.norm2(tokens)
        read = [self.attn2.absorbed(normed[:, :1], context[:, None])]
        for start in range(0, keys.shape[1], _CHUNK):
            chosen = _gather(context, keys[:, start : start + _CHUNK])
            read.append(self.attn2.absorbed(normed[:, 1 + start : 1 + start + _CHUNK], chosen))
        tokens = tokens + torch.cat(read, 1)
        return tokens + self.ff(self.norm3(tokens))

    def class_token(self, tokens: Tensor, context: Tensor) -> Tensor:
        """The class token alone (B, 1, 512), which attends to everything.

        Args:
            tokens: class token and query cells (B, 1025, 512).
            context: reference cells (B or 1, M, 256).
        """
        token = self.read_tokens(tokens, 1)
        token = token + self.attn2.absorbed(self.norm2(token), context[:, None])
        return token + self.ff(self.norm3(token))


def _gather(context: Tensor, keys: Tensor) -> Tensor:
    """Rows ``keys`` (B, n, k) of the context (B or 1, M, C): (B, n, k, C)."""
    if len(context) == 1:
        return context[0][keys]
    return torch.stack([rows[index] for rows, index in zip(context, keys, strict=True)])


class Transformer(nn.Module):
    """Three blocks between two linear maps."""

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
        widths: channels before, between and after the maps.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Output of the last map."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)


class Decoder(nn.Module):
    """Correspondence-guided attention: query cells attend to the reference cells they match (section 4.3).

    Args:
        query_position: tell the query's cells where they are, which the paper does not. The map that does it starts at
            zero, so published weights say with it what they say without.
    """

    cell_code: Tensor

    def __init__(self, *, query_position: bool = False) -> None:
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
            self.register_buffer("cell_code", grid_code(), persistent=False)

    def context(self, features: Tensor, xyz: Tensor) -> Tensor:
        """What is attended to: features of reference cells beside the code of their positions (..., M, 256).

        Args:
            features: (..., M, 128).
            xyz: coordinates in the frame of the mesh (..., M, 3), -1 where a cell is empty.
        """
        # half precision has no digits left at the highest frequency
        code = self.map_to_pos_enc(position_code(xyz.float()))
        return torch.cat([features, code.to(features)], -1)

    def tokens(self, features: Tensor) -> Tensor:
        """Class token and query cells (B, 1025, 512).

        Args:
            features: of the query's cells (B, 1024, 128).
        """
        token = self.token.weight.expand(features.shape[0], 1, -1).to(features)
        tokens = self.crossatten.proj_in(torch.cat([token, features], 1))
        if self.query_position is None:
            return tokens
        code = self.query_position(self.cell_code)
        return tokens + functional.pad(code, (0, 0, 1, 0))

    def forward(self, features: Tensor, context: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B,) and boxes before the sigmoid (B, 4), without computing what does not reach them.

        Args:
            features: of the query's cells (B, 1024, 128).
            context: of the reference's cells (B or 1, M, 256).
            keys: numbers of the reference cells that each query cell attends to (B, 1024, k), or None for all.
        """
        *blocks, last = self.crossatten.blocks
        tokens = self.tokens(features)
        for block in blocks:
            tokens = block(tokens, context, None) if keys is None else block.gathered(tokens, context, keys)
        return self.heads(self.crossatten.proj_out(last.class_token(tokens, context)[:, 0]))

    def published(self, features: Tensor, context: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """What ``forward`` gives, computed as published: every key masked or not, every row of every block.

        It defines what the faster form must give; it takes several times as long and as much memory.

        Args:
            features: see ``forward``.
            context: see ``forward``.
            keys: see ``forward``.
        """
        mask = None
        if keys is not None:
            mask = torch.zeros(*keys.shape[:2], context.shape[1], dtype=torch.bool, device=keys.device)
            # the class token sees everything
            mask = functional.pad(mask.scatter(2, keys, value=True), (0, 0, 1, 0), value=True)
        tokens = self.tokens(features)
        for block in self.crossatten.blocks:
            tokens = block(tokens, context, mask)
        return self.heads(self.crossatten.proj_out(tokens)[:, 0])

    def heads(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,) and boxes before the sigmoid (B, 4).

        Args:
            token: class token (B, 128).
        """
        return self.cls_layer(token)[:, 0], self.bbox_layer(token)
