# SPDX-License-Identifier: Apache-2.0
"""Blocks of attention over a query's cells and those of the reference; the names are those of the published weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.looking3d.encoder import CHANNELS

WIDTH = 512
"""Channels of a token."""
HEADS = 8
CONTEXT = 2 * CHANNELS
"""Channels of a reference cell: its feature and the code of its position."""
_CHUNK = 128
"""Query cells that are attended for at once: what they gather stays in the processor's cache."""


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
    """Self-attention, attention to the reference, feed-forward, each on normalized tokens and added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention(WIDTH)
        self.ff = FeedForward()
        self.attn2 = Attention(CONTEXT)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def read_tokens(self, tokens: Tensor, rows: int | None = None) -> Tensor:
        """The first ``rows`` tokens, or all, after self-attention to all of them (B, n, 512).

        Args:
            tokens: class token and query cells (B, 1 + g * g, 512).
            rows: number of tokens that are wanted, or None for all.
        """
        normed = self.norm1(tokens)
        return tokens[:, :rows] + self.attn1(normed[:, :rows], normed)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """All tokens, as published: keys that a token may not attend to are masked.

        Args:
            tokens: class token and query cells (B, 1 + g * g, 512).
            context: reference cells (B or 1, M, 256).
            mask: true where a token may attend to a key (B, 1 + g * g, M), or None for everywhere.
        """
        tokens = self.read_tokens(tokens)
        tokens = tokens + self.attn2(self.norm2(tokens), context, mask)
        return tokens + self.ff(self.norm3(tokens))

    def gathered(self, tokens: Tensor, context: Tensor, keys: Tensor) -> Tensor:
        """The same with the context gathered that each query cell attends to.

        Args:
            tokens: class token and query cells (B, 1 + g * g, 512).
            context: reference cells (B or 1, M, 256).
            keys: numbers of the reference cells that each query cell attends to (B, g * g, k).
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
            tokens: class token and query cells (B, 1 + g * g, 512).
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
