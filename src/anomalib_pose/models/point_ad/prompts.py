# SPDX-License-Identifier: Apache-2.0
"""Learnable prompts: two texts with trained word embeddings (PointAD, section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.point_ad.text import TextTower, end_positions

_WORDS = ("object.", "damaged object.")
"""Words after the learned embeddings of the normal and of the abnormal text."""


class PromptLearner(nn.Module):
    """Learned embeddings before "object." and "damaged object.", and learned tokens inside the text tower.

    The state dict holds only the learned tokens: 43,008 numbers for ViT-L with the published sizes.

    Args:
        text: text tower that the prompts are for; the learner keeps no reference to it.
        prompt_length: number of learned embeddings in each text.
        deep_sets: number of blocks, from the second on, with learned tokens at their input.
        deep_length: number of learned tokens in each of these blocks; they follow the start token.
        paper: round the deep tokens to half precision, as the published program does.
        seed: seed of the initial values.

    Raises:
        ValueError: if the tower has too few blocks or positions.
    """

    ids: Tensor

    def __init__(
        self,
        text: TextTower,
        prompt_length: int = 12,
        deep_sets: int = 8,
        deep_length: int = 4,
        *,
        paper: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= deep_sets < len(text.blocks):
            msg = f"deep_sets should be 0 to {len(text.blocks) - 1}, the text blocks after the first, got {deep_sets}."
            raise ValueError(msg)
        if prompt_length < 1 or not 1 <= deep_length <= prompt_length:
            msg = f"deep_length should be between 1 and prompt_length, got {deep_length} and {prompt_length}."
            raise ValueError(msg)
        self.paper = paper
        ids = text.tokenize([" ".join(["X"] * prompt_length + [words]) for words in _WORDS])
        self.register_buffer("ids", ids, persistent=False)
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * 0.02)

        self.normal = noise(prompt_length, text.width)
        self.abnormal = noise(prompt_length, text.width)
        self.deep = noise(deep_sets, deep_length, text.width)

    def tokens(self, text: TextTower) -> Tensor:
        """Compose the embeddings of both texts (2, n, w), without positions.

        Args:
            text: text tower that the prompts are for.
        """
        fixed = text.embed(self.ids)
        learned = torch.stack([self.normal, self.abnormal])
        return torch.cat([fixed[:, :1], learned, fixed[:, 1 + learned.shape[1] :]], 1)

    def forward(self, text: TextTower) -> Tensor:
        """Compute unit features (2, d) of the normal and of the abnormal text.

        Args:
            text: text tower that the prompts are for.
        """
        deep = self.deep.half().to(self.deep.dtype) if self.paper else self.deep
        return functional.normalize(text(self.tokens(text), end_positions(self.ids), deep), dim=-1)
