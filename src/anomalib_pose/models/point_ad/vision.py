# SPDX-License-Identifier: Apache-2.0
"""CLIP's image tower with PointAD's second path of value-to-value attention (PointAD, section 3.1)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from anomalib_pose.data.images import resize_bicubic
from anomalib_pose.models.point_ad.attention import attend, check_blocks, feed_forward, queries_keys_values

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_VV_FRACTION = 19 / 24
"""Fraction of the blocks with the second path, as published for ViT-L."""


class VisionTower(nn.Module):
    r"""CLIP's image transformer: one feature of the whole image, and one feature of each patch.

    The first path is CLIP's own; the feature of the whole image is read from it. In the last blocks a second path
    exists. Each of these blocks adds to the second path

    .. math:: \operatorname{proj}\big(\operatorname{softmax}(v v^T / \sqrt{w / heads})\, v\big)

    with the values :math:`v` of the first path, and no feed-forward. The second path keeps features at their places in
    the image; the features of patches are read from it.

    Args:
        visual: vision transformer of open_clip; its parts are shared, not copied.

    Raises:
        ValueError: if ``visual`` is another kind of network, or its images are not square.
    """

    mean: Tensor
    std: Tensor

    class_embedding: Tensor
    positional_embedding: Tensor
    proj: Tensor

    def __init__(self, visual: Any) -> None:
        super().__init__()
        parts = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj")
        missing = [part for part in parts if getattr(visual, part, None) is None]
        if missing or getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", "tok") != "tok":
            msg = (
                "PointAD needs a vision transformer of open_clip that reads its class token, but this image tower is "
                "another network. Use a CLIP built like OpenAI's."
            )
            raise ValueError(msg)
        size = visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            msg = f"PointAD needs a CLIP for square images, but this CLIP takes {height} x {width} pixels."
            raise ValueError(msg)
        self.image_size: int = height
        self.conv1, self.ln_pre, self.ln_post = visual.conv1, visual.ln_pre, visual.ln_post
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.proj = visual.proj
        self.blocks = check_blocks(visual.transformer.resblocks, "image")
        for name, default in (("mean", _MEAN), ("std", _STD)):
            values = getattr(visual, f"image_{name}", None) or default
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)

    def count_vv_blocks(self, vv_blocks: int | None) -> int:
        """Return the number of blocks with the second path.

        Args:
            vv_blocks: number of last blocks; None for 19 of 24, or the same fraction of another number.

        Raises:
            ValueError: if the number is not between 1 and the number of blocks.
        """
        if vv_blocks is None:
            return max(1, int(len(self.blocks) * _VV_FRACTION + 0.5))
        if not 1 <= vv_blocks <= len(self.blocks):
            msg = f"vv_blocks should be between 1 and {len(self.blocks)}, the blocks of this CLIP, got {vv_blocks}."
            raise ValueError(msg)
        return vv_blocks

    def preprocess(self, images: Tensor) -> Tensor:
        """Resize images to CLIP's size and normalize them (b, 3, image_size, image_size).

        Args:
            images: square, RGB (b, 3, s, s) in [0, 1].
        """
        return self.normalize(resize_bicubic(images, self.image_size))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images by the mean and the standard deviation of CLIP's training.

        Args:
            images: RGB (b, 3, h, w) in [0, 1].
        """
        return (images - self.mean) / self.std

    def paths(self, preprocessed: Tensor, vv_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tokens of the first and of the second path after each block, each (b, 1 + p * p, w).

        Both paths are equal before the second one begins.

        Args:
            preprocessed: output of ``preprocess``.
            vv_blocks: number of last blocks with the second path.
        """
        patches = self.conv1(preprocessed).flatten(2).transpose(1, 2)
        # not len(patches), which an exported graph would hold as a constant
        class_token = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([class_token, patches], 1) + self.positional_embedding.to(patches.dtype))
        second = x
        for number, block in enumerate(self.blocks):
            q, k, v = queries_keys_values(block, x)
            x = feed_forward(block, x + attend(block, q, k, v))
            second = x if number < len(self.blocks) - vv_blocks else second + attend(block, v, v, v)
            yield x, second

    def project(self, tokens: Tensor) -> Tensor:
        """Project tokens (..., w) to the feature space of images and texts (..., d).

        Args:
            tokens: output of any block.
        """
        return self.ln_post(tokens) @ self.proj

    def forward(self, preprocessed: Tensor, vv_blocks: int) -> tuple[Tensor, Tensor]:
        """Compute features of images (b, d) and of their patches (b, p * p, d), row by row, not normalized.

        Args:
            preprocessed: output of ``preprocess``.
            vv_blocks: number of last blocks with the second path.
        """
        *_, (x, second) = self.paths(preprocessed, vv_blocks)
        return self.project(x[:, 0]), self.project(second[:, 1:])
