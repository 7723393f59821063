# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower with optional learned tokens, evaluated only up to the end of the text."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.point_ad.attention import attend, check_blocks, feed_forward, queries_keys_values

TEMPERATURE = 0.07
"""Divides the cosines of images and texts (PointAD, section 3.1)."""

_VOCABULARY = 49408
"""Number of tokens of OpenAI's tokenizer, the one in open_clip."""


class TextTower(nn.Module):
    """CLIP's text transformer.

    Attention is causal, and the feature of a text is read at its end token. Tokens after the end therefore change
    nothing and are left out.

    Args:
        clip: model of open_clip; its parts are shared, not copied.

    Raises:
        ValueError: if attention is not causal, the feature is not read at the end token, or the tokenizer is not
            OpenAI's.
    """

    positional_embedding: Tensor
    text_projection: Tensor | nn.Linear | None

    def __init__(self, clip: Any) -> None:
        super().__init__()
        if getattr(clip, "attn_mask", None) is None or getattr(clip, "text_pool_type", "argmax") != "argmax":
            msg = (
                "PointAD needs a text tower that reads from left to right up to an end token, which this CLIP does "
                "not have. Use a CLIP built like OpenAI's."
            )
            raise ValueError(msg)
        self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
        if self.token_embedding.num_embeddings != _VOCABULARY:
            msg = (
                f"PointAD needs a CLIP with OpenAI's tokenizer of {_VOCABULARY} tokens, but this CLIP's tokenizer has "
                f"{self.token_embedding.num_embeddings}."
            )
            raise ValueError(msg)
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.blocks = check_blocks(clip.transformer.resblocks, "text")
        self.width: int = self.token_embedding.embedding_dim

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Convert texts to token ids (b, n), n up to the end of the longest text; 0 after the end of a text.

        Args:
            texts: b texts.

        Raises:
            ValueError: if a text has more tokens than the tower's context.
        """
        from open_clip import tokenize

        context = len(self.positional_embedding)
        ids = tokenize(list(texts), context_length=context + 1)
        length = int(end_positions(ids).max()) + 1
        if length > context:
            msg = f"The text {max(texts, key=len)!r} is too long: this CLIP reads {context} tokens."
            raise ValueError(msg)
        return ids[:, :length]

    def embed(self, ids: Tensor) -> Tensor:
        """Look up the embeddings of tokens (b, n, w), without positions.

        Args:
            ids: token ids (b, n).
        """
        return self.token_embedding(ids)

    def states(self, tokens: Tensor, deep: Tensor | None = None) -> list[Tensor]:
        """Compute the tokens after each block, a list of (b, n, w).

        Args:
            tokens: embeddings (b, n, w) without positions.
            deep: learned tokens (k, m, w). Those of row i replace the tokens at positions 1..m at the input of block
                i + 2 (blocks count from 1). None for no replacement.
        """
        x = tokens + self.positional_embedding[: tokens.shape[1]]
        states = []
        for number, block in enumerate(self.blocks):
            if deep is not None and 1 <= number <= len(deep):
                replacement = deep[number - 1].expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], replacement, x[:, 1 + replacement.shape[1] :]], 1)
            x = feed_forward(block, x + attend(block, *queries_keys_values(block, x), causal=True))
            states.append(x)
        return states

    def forward(self, tokens: Tensor, end: Tensor, deep: Tensor | None = None) -> Tensor:
        """Compute text features (b, d), not normalized.

        Args:
            tokens: embeddings (b, n, w) without positions.
            end: positions of the end tokens (b,).
            deep: see ``states``.
        """
        last = self.ln_final(self.states(tokens, deep)[-1][torch.arange(len(tokens)), end])
        if self.text_projection is None:
            return last
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(last)
        return last @ self.text_projection

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Compute the features of plain texts (b, d), not normalized.

        Args:
            texts: b texts.
            batch_size: texts in one pass through the tower.
        """
        ids = self.tokenize(texts).to(self.positional_embedding.device)
        return torch.cat([self(self.embed(part), end_positions(part)) for part in ids.split(batch_size)])


def end_positions(ids: Tensor) -> Tensor:
    """Return the positions of the end tokens (b,). The end token has the highest id.

    Args:
        ids: token ids (b, n).
    """
    return ids.argmax(-1)


def direction(text: Tensor) -> Tensor:
    r"""Combine two text features into one vector (d,) that scores image features (PointAD, section 3.1).

    The softmax over the cosines with both texts, divided by the temperature :math:`\tau`, equals

    .. math:: P(abnormal \mid f) = \sigma(f \cdot (t_{abnormal} - t_{normal}) / \tau)

    and this function returns the vector that :math:`f` is multiplied by.

    Args:
        text: unit features (2, d) of the normal and of the abnormal text.
    """
    return (text[1] - text[0]) / TEMPERATURE


@torch.no_grad()
def ensemble_features(text: TextTower, category: str = "object") -> Tensor:
    """Average the features of WinCLIP's prompts to unit features (2, d): normal, abnormal. Nothing is trained.

    Args:
        text: text tower.
        category: word for the object.
    """
    from anomalib.models.image.winclip.prompting import create_prompt_ensemble

    means = [text.encode(prompts).mean(0) for prompts in create_prompt_ensemble(category.replace("_", " "))]
    return functional.normalize(torch.stack(means), dim=-1)
