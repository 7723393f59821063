# SPDX-License-Identifier: Apache-2.0
"""CLIP's image tower with a second path in which values attend to values (PointAD, section 3.1)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.point_ad.attention import attend, check_blocks, feed_forward, queries_keys_values

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_VV_SHARE = 19 / 24
"""Of the blocks that have the second path, as published for ViT-L."""


class VisionTower(nn.Module):
    """Features of an image as a whole and of its patches.

    The last blocks have a second path, which adds to its tokens what values of the first path gather by their likeness
    to each other, and passes no perceptron. It keeps what lies where, so patches are read from it; the image as a whole
    is read from the first path, which is CLIP's own.

    Args:
        visual: vision transformer of open_clip; its parts are used, not copied.

    Raises:
        ValueError: if it is of another kind, or its images are not square.
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
            msg = "PointAD needs a vision transformer of open_clip that reads its class token, and this is none."
            raise ValueError(msg)
        size = visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width:
            msg = f"PointAD needs a CLIP for square images, and this one takes {height} x {width} pixels."
            raise ValueError(msg)
        self.image_size: int = height
        self.conv1, self.ln_pre, self.ln_post = visual.conv1, visual.ln_pre, visual.ln_post
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.proj = visual.proj
        self.blocks = check_blocks(visual.transformer.resblocks, "image")
        for name, values in (("mean", _MEAN), ("std", _STD)):
            known = getattr(visual, f"image_{name}", None) or values
            self.register_buffer(name, torch.tensor(known, device="cpu").view(3, 1, 1), persistent=False)

    def second_path(self, vv_blocks: int | None) -> int:
        """Number of blocks with the second path.

        Args:
            vv_blocks: number of last blocks; None for 19 of 24, or the same share of another number.

        Raises:
            ValueError: if it is not between 1 and the number of blocks.
        """
        if vv_blocks is None:
            return max(1, int(len(self.blocks) * _VV_SHARE + 0.5))
        if not 1 <= vv_blocks <= len(self.blocks):
            msg = f"vv_blocks should be between 1 and {len(self.blocks)}, the blocks of this CLIP, got {vv_blocks}."
            raise ValueError(msg)
        return vv_blocks

    def prepare(self, images: Tensor) -> Tensor:
        """Images in the size and with the mean and deviation that the tower was trained with.

        Args:
            images: square, RGB (b, 3, s, s) in [0, 1].
        """
        return self.normalize(resized(images, self.image_size))

    def normalize(self, images: Tensor) -> Tensor:
        """Images with the mean and deviation that the tower was trained with.

        Args:
            images: RGB (b, 3, h, w) in [0, 1].
        """
        return (images - self.mean) / self.std

    def paths(self, prepared: Tensor, vv_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens of both paths after each block (b, 1 + p * p, w); they are the same before the second path begins.

        Args:
            prepared: images as ``prepare`` makes them.
            vv_blocks: number of last blocks with the second path.
        """
        patches = self.conv1(prepared).flatten(2).transpose(1, 2)
        # not len(patches), which an exported graph would hold as a constant
        first = self.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding.to(patches.dtype))
        second = x
        for number, block in enumerate(self.blocks):
            q, k, v = queries_keys_values(block, x)
            x = feed_forward(block, x + attend(block, q, k, v))
            second = x if number < len(self.blocks) - vv_blocks else second + attend(block, v, v, v)
            yield x, second

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (..., w) in the space that images and texts share (..., d).

        Args:
            tokens: of any block.
        """
        return self.ln_post(tokens) @ self.proj

    def forward(self, prepared: Tensor, vv_blocks: int) -> tuple[Tensor, Tensor]:
        """Features of the images (b, d) and of their patches (b, p * p, d), row by row, not of unit length.

        Args:
            prepared: images as ``prepare`` makes them.
            vv_blocks: number of last blocks with the second path.
        """
        *_, (x, second) = self.paths(prepared, vv_blocks)
        return self.project(x[:, 0]), self.project(second[:, 1:])


def resized(images: Tensor, size: int) -> Tensor:
    """Images in CLIP's size (b, 3, size, size), without aliasing.

    Args:
        images: square, RGB (b, 3, s, s) in [0, 1].
        size: CLIP's.
    """
    if images.shape[-2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
