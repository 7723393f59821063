# SPDX-License-Identifier: Apache-2.0
"""What the blocks of both towers compute, from their weights alone.

open_clip's blocks take tokens in an order that has changed between its versions, and no values in place of queries.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


def check_blocks(blocks: Iterable[nn.Module], tower: str) -> nn.ModuleList:
    """The blocks of a tower, if they are of the kind that is computed here.

    Args:
        blocks: residual attention blocks of open_clip.
        tower: its name, for the message.

    Raises:
        ValueError: if a block has other parts.
    """
    found = nn.ModuleList(blocks)
    for block in found:
        attention = getattr(block, "attn", None)
        if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
            msg = f"PointAD needs blocks of plain multi-head attention, which those of CLIP's {tower} tower are not."
            raise ValueError(msg)
    return found


def queries_keys_values(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a block's attention makes of normalized tokens, each (b, heads, n, width of a head).

    Args:
        block: of open_clip.
        x: tokens (b, n, w).
    """
    attention = block.attn
    projected = functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, -1))
    return q, k, v


def attend(block: Any, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """What attention adds to the tokens (b, n, w).

    Args:
        block: of open_clip.
        q: queries (b, heads, n, width of a head).
        k: keys of the same shape.
        v: values of the same shape.
        causal: let a token see itself and those before it alone.
    """
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """Tokens and what the block's perceptron adds to them (b, n, w).

    Args:
        block: of open_clip.
        x: tokens (b, n, w).
    """
    return x + block.ls_2(block.mlp(block.ln_2(x)))
