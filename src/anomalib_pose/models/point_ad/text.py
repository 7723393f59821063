# SPDX-License-Identifier: Apache-2.0
"""CLIP's text tower, run no further than the end of the text, with room for learned tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.point_ad.attention import attend, check_blocks, feed_forward, queries_keys_values

TEMPERATURE = 0.07
"""That cosines of images and texts are divided by."""

_VOCABULARY = 49408
"""Of the tokenizer that comes with open_clip."""


class TextTower(nn.Module):
    """Features of texts.

    A token sees those before it alone, and a text is read from its end token: what follows the end changes nothing and
    is left out.

    Args:
        clip: model of open_clip; its parts are used, not copied.

    Raises:
        ValueError: if its texts are read in another way, or by another tokenizer.
    """

    positional_embedding: Tensor
    text_projection: Tensor | nn.Linear | None

    def __init__(self, clip: Any) -> None:
        super().__init__()
        if getattr(clip, "attn_mask", None) is None or getattr(clip, "text_pool_type", "argmax") != "argmax":
            msg = "PointAD needs a text tower that reads from left to right up to an end token: this CLIP's does not."
            raise ValueError(msg)
        self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
        if self.token_embedding.num_embeddings != _VOCABULARY:
            found = self.token_embedding.num_embeddings
            msg = f"PointAD needs a CLIP with OpenAI's tokenizer of {_VOCABULARY} tokens, this one's knows {found}."
            raise ValueError(msg)
        self.positional_embedding, self.text_projection = clip.positional_embedding, clip.text_projection
        self.blocks = check_blocks(clip.transformer.resblocks, "text")
        self.width: int = self.token_embedding.embedding_dim

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Numbers of the texts' tokens (b, n), up to the end of the longest text; 0 after a text's end.

        Args:
            texts: b texts.

        Raises:
            ValueError: if a text is longer than the tower can read.
        """
        from open_clip import tokenize

        length = len(self.positional_embedding)
        ids = tokenize(list(texts), context_length=length + 1)
        used = int(ends(ids).max()) + 1
        if used > length:
            msg = f"This CLIP reads {length} tokens, and a text has more: {max(texts, key=len)!r}."
            raise ValueError(msg)
        return ids[:, :used]

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens (b, n, w), without positions.

        Args:
            ids: numbers of tokens (b, n).
        """
        return self.token_embedding(ids)

    def states(self, tokens: Tensor, deep: Tensor | None = None) -> list[Tensor]:
        """Tokens after each block (b, n, w).

        Args:
            tokens: embeddings (b, n, w) without positions.
            deep: tokens (k, m, w) that take the places 1..m on entry of the blocks 2..k + 1, or None.
        """
        x = tokens + self.positional_embedding[: tokens.shape[1]]
        found = []
        for number, block in enumerate(self.blocks):
            if deep is not None and 1 <= number <= len(deep):
                placed = deep[number - 1].expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], placed, x[:, 1 + placed.shape[1] :]], 1)
            x = feed_forward(block, x + attend(block, *queries_keys_values(block, x), causal=True))
            found.append(x)
        return found

    def forward(self, tokens: Tensor, end: Tensor, deep: Tensor | None = None) -> Tensor:
        """Features of the texts (b, d), not of unit length.

        Args:
            tokens: embeddings (b, n, w) without positions.
            end: places of the end tokens (b,).
            deep: see ``states``.
        """
        last = self.ln_final(self.states(tokens, deep)[-1][torch.arange(len(tokens)), end])
        if self.text_projection is None:
            return last
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(last)
        return last @ self.text_projection

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Features of texts as they stand (b, d), not of unit length.

        Args:
            texts: b texts.
            batch_size: texts that pass the tower at once.
        """
        ids = self.tokenize(texts).to(self.positional_embedding.device)
        return torch.cat([self(self.embed(part), ends(part)) for part in ids.split(batch_size)])


def ends(ids: Tensor) -> Tensor:
    """Places of the end tokens (b,), which have the highest number.

    Args:
        ids: numbers of tokens (b, n).
    """
    return ids.argmax(-1)


def direction(text: Tensor) -> Tensor:
    """The one vector (d,) that the scores of a feature f need: sigmoid(f . direction) (PointAD, section 3.1).

    It is what the softmax over the cosines with both texts, divided by CLIP's temperature, says of the second.

    Args:
        text: unit features (2, d) of what is normal and what is not.
    """
    return (text[1] - text[0]) / TEMPERATURE


@torch.no_grad()
def ensemble_features(text: TextTower, category: str = "object") -> Tensor:
    """Unit features (2, d) of what is normal and what is not, as the mean of WinCLIP's prompts; nothing is learned.

    Args:
        text: tower.
        category: word for the object.
    """
    from anomalib.models.image.winclip.prompting import create_prompt_ensemble

    means = [text.encode(prompts).mean(0) for prompts in create_prompt_ensemble(category.replace("_", " "))]
    return functional.normalize(torch.stack(means), dim=-1)
