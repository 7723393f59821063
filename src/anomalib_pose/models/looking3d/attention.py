# SPDX-License-Identifier: Apache-2.0
"""Attention blocks over query cells and reference cells; parameter names are those of the published weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.looking3d.encoder import CHANNELS

WIDTH = 512
"""Channels of a token."""
HEADS = 8
"""Number of attention heads."""
CONTEXT = 2 * CHANNELS
"""Channels of a reference cell: its feature and its position code."""
_CHUNK = 128
"""Query cells in one step: the reference cells that they gather fit in the processor's cache."""


class Attention(nn.Module):
    """Attention with eight heads.

    Args:
        context: channels of the context.
    """

    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend to a context (B, n, 512).

        Args:
            queries: tokens (B, n, 512).
            context: reference cells or tokens (B or 1, M, C).
            mask: true where a query may attend to a key (B, n, M); None for everywhere.
        """
        q, k, v = (_heads(part) for part in (self.to_q(queries), self.to_k(context), self.to_v(context)))
        attended = functional.scaled_dot_product_attention(
            q,
            k.expand(q.shape[0], -1, -1, -1),
            v.expand(q.shape[0], -1, -1, -1),
            None if mask is None else mask[:, None],
        )
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def absorbed(self, queries: Tensor, gathered: Tensor) -> Tensor:
        r"""Attend to a separate context for each query (B, n, 512), with the same result as ``forward``.

        The matrices K of keys and V of values are applied to the few queries instead of the many context cells C:

        .. math:: q (C K)^T = (q K^T) C^T, \qquad a (C V) = (a C) V

        The context is therefore neither projected nor stored.

        Args:
            queries: tokens (B, n, 512).
            gathered: context of each query (B, n, k, C), or one context (B or 1, 1, M, C) for all queries.
        """
        channels = gathered.shape[-1]
        q = self.to_q(queries).unflatten(-1, (HEADS, -1))
        keys, values = (part.weight.view(HEADS, -1, channels) for part in (self.to_k, self.to_v))
        scaled_queries = torch.einsum("bnhd,hdc->bnhc", q, keys) / math.sqrt(q.shape[-1])
        weights = (scaled_queries @ gathered.transpose(-1, -2)).softmax(-1)
        attended = torch.einsum("bnhc,hdc->bnhd", weights @ gathered, values)
        return self.to_out(attended.flatten(-2))


def _heads(tokens: Tensor) -> Tensor:
    """Split tokens (B, n, 512) by heads: (B, 8, n, 64)."""
    return tokens.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class GatedUnit(nn.Module):
    """Linear map; one half of its output is multiplied by the GELU of the other half (GEGLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 8 * WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute tokens of four times the width (..., 2048).

        Args:
            tokens: (..., 512).
        """
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    """Gated unit, then linear map."""

    def __init__(self) -> None:
        super().__init__()
        # the identity stands for the published dropout with probability 0, so that names agree
        self.net = nn.Sequential(GatedUnit(), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute tokens (..., 512) from tokens (..., 512)."""
        return self.net(tokens)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, attention to the reference, feed-forward, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention(WIDTH)
        self.ff = FeedForward()
        self.attn2 = Attention(CONTEXT)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def self_attend(self, tokens: Tensor, rows: int | None = None) -> Tensor:
        """Apply self-attention and return the first ``rows`` tokens (B, rows, 512).

        Args:
            tokens: class token and query cells (B, 1 + g * g, 512).
            rows: number of tokens to return; None for all.
        """
        normed = self.norm1(tokens)
        return tokens[:, :rows] + self.attn1(normed[:, :rows], normed)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Compute all tokens as published, by masking the keys that a token must not attend to.

        Args:
            tokens: class token and query cells (B, 1 + g * g, 512).
            context: reference cells (B or 1, M, 256).
            mask: true where a token may attend to a key (B, 1 + g * g, M); None for everywhere.
        """
        tokens = self.self_attend(tokens)
        tokens = tokens + self.attn2(self.norm2(tokens), context, mask)
        return tokens + self.ff(self.norm3(tokens))

    def gathered(self, tokens: Tensor, context: Tensor, keys: Tensor) -> Tensor:
        """Compute all tokens by gathering the keys of each query cell, with the same result as ``forward``.

        Args:
            tokens: class token and query cells (B, 1 + g * g, 512).
            context: reference cells (B or 1, M, 256).
            keys: indices of the reference cells that each query cell attends to (B, g * g, k).
        """
        tokens = self.self_attend(tokens)
        normed = self.norm2(tokens)
        attended = [self.attn2.absorbed(normed[:, :1], context[:, None])]
        for start in range(0, keys.shape[1], _CHUNK):
            cells = _gather(context, keys[:, start : start + _CHUNK])
            attended.append(self.attn2.absorbed(normed[:, 1 + start : 1 + start + _CHUNK], cells))
        tokens = tokens + torch.cat(attended, 1)
        return tokens + self.ff(self.norm3(tokens))

    def class_token(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Compute only the class token (B, 1, 512), which attends to everything.

        Args:
            tokens: class token and query cells (B, 1 + g * g, 512).
            context: reference cells (B or 1, M, 256).
        """
        token = self.self_attend(tokens, 1)
        token = token + self.attn2.absorbed(self.norm2(token), context[:, None])
        return token + self.ff(self.norm3(token))


def _gather(context: Tensor, keys: Tensor) -> Tensor:
    """Select rows ``keys`` (B, n, k) of the context (B or 1, M, C): (B, n, k, C)."""
    if len(context) == 1:
        return context[0][keys]
    return torch.stack([rows[index] for rows, index in zip(context, keys, strict=True)])
