# SPDX-License-Identifier: Apache-2.0
"""Attention and feed-forward of CLIP's transformer blocks, computed from the blocks' weights.

open_clip's own blocks cannot be called: the order of their tokens differs between versions (length first in 2.24, batch
first in 3.x), and they do not accept values in place of queries.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def check_blocks(blocks: Iterable[nn.Module], tower: str) -> nn.ModuleList:
    """Return the blocks of a tower if they have plain multi-head attention.

    Args:
        blocks: residual attention blocks of open_clip.
        tower: name of the tower, for the message.

    Raises:
        ValueError: if a block has another kind of attention.
    """
    checked = nn.ModuleList(blocks)
    for block in checked:
        attention = getattr(block, "attn", None)
        if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
            msg = (
                f"PointAD needs blocks of plain multi-head attention, but the {tower} tower of this CLIP has other "
                "blocks. Use a CLIP built like OpenAI's."
            )
            raise ValueError(msg)
    return checked


def queries_keys_values(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize tokens and project them to queries, keys and values, each (b, heads, n, w / heads).

    Args:
        block: residual attention block of open_clip.
        x: tokens (b, n, w).
    """
    attention = block.attn
    projected = functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, -1))
    return q, k, v


def attend(block: Any, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    r"""Compute the attention output that is added to the tokens (b, n, w).

    .. math:: \operatorname{proj}\big(\operatorname{softmax}(q k^T / \sqrt{w / heads})\, v\big)

    Args:
        block: residual attention block of open_clip.
        q: queries (b, heads, n, w / heads).
        k: keys of the same shape.
        v: values of the same shape.
        causal: let a token attend only to itself and to earlier tokens.
    """
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """Add the output of the block's perceptron to the tokens (b, n, w).

    Args:
        block: residual attention block of open_clip.
        x: tokens (b, n, w).
    """
    return x + block.ls_2(block.mlp(block.ln_2(x)))
