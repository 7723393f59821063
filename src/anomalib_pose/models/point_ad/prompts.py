# SPDX-License-Identifier: Apache-2.0
"""The learned prompts: two texts whose words are found by training (PointAD, section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.point_ad.text import TextTower, ends

_WORDS = ("object.", "damaged object.")
"""What follows the learned words of the normal and of the abnormal text."""


class PromptLearner(nn.Module):
    """Learned words before "object." and "damaged object.", and learned tokens inside the text tower.

    Its state holds the learned tokens alone: 43,008 numbers for ViT-L with the published sizes.

    Args:
        text: tower that the prompts are for; it is not kept.
        prompt_length: learned words of each text.
        deep_sets: blocks, from the second on, that read learned tokens on entry.
        deep_length: learned tokens that such a block reads, at the places after the start token.
        half_precision_prompts: let the tokens of blocks pass through half precision, as the published code does.
        seed: of the first values.

    Raises:
        ValueError: if the tower has too few blocks or places.
    """

    ids: Tensor

    def __init__(
        self,
        text: TextTower,
        prompt_length: int = 12,
        deep_sets: int = 8,
        deep_length: int = 4,
        *,
        half_precision_prompts: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= deep_sets < len(text.blocks):
            msg = f"deep_sets should be 0 to {len(text.blocks) - 1}, the text blocks after the first, got {deep_sets}."
            raise ValueError(msg)
        if prompt_length < 1 or not 1 <= deep_length <= prompt_length:
            msg = f"deep_length should be between 1 and prompt_length, got {deep_length} and {prompt_length}."
            raise ValueError(msg)
        self.half_precision_prompts = half_precision_prompts
        ids = text.tokenize([" ".join(["X"] * prompt_length + [words]) for words in _WORDS])
        self.register_buffer("ids", ids, persistent=False)
        generator = torch.Generator().manual_seed(seed)

        def noise(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * 0.02)

        self.normal = noise(prompt_length, text.width)
        self.abnormal = noise(prompt_length, text.width)
        self.deep = noise(deep_sets, deep_length, text.width)

    def tokens(self, text: TextTower) -> Tensor:
        """Embeddings of both texts (2, n, w), without positions.

        Args:
            text: tower that the prompts are for.
        """
        fixed = text.embed(self.ids)
        learned = torch.stack([self.normal, self.abnormal])
        return torch.cat([fixed[:, :1], learned, fixed[:, 1 + learned.shape[1] :]], 1)

    def forward(self, text: TextTower) -> Tensor:
        """Unit features (2, d) of the normal and the abnormal text.

        Args:
            text: tower that the prompts are for.
        """
        deep = self.deep.half().to(self.deep.dtype) if self.half_precision_prompts else self.deep
        return functional.normalize(text(self.tokens(text), ends(self.ids), deep), dim=-1)
