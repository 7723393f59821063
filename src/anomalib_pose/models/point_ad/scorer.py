# SPDX-License-Identifier: Apache-2.0
"""Anomaly scores of images from CLIP's features and one direction in their space."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.point_ad.image_scores import ImageScores
from anomalib_pose.models.point_ad.vision import VisionTower


class ClipFeatures(NamedTuple):
    """Unit features of images, with any leading shape.

    Args:
        cls: features of whole images (..., d).
        patches: features of patches (..., p * p, d), row by row.
    """

    cls: Tensor
    patches: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "ClipFeatures":
        """Convert both parts to another precision and move them to another device.

        Args:
            dtype: precision of both parts.
            device: target device; None for the current device.
        """
        return ClipFeatures(*(part.to(device or part.device, dtype) for part in self))


class ClipScorer(nn.Module):
    """Scores images by the direction between the features of an abnormal and a normal text.

    Args:
        vision: image tower.
        vv_blocks: number of last blocks with value-to-value attention; None for 19 of 24, or the same fraction.

    Raises:
        ValueError: if the tower has fewer blocks.
    """

    def __init__(self, vision: VisionTower, vv_blocks: int | None = None) -> None:
        super().__init__()
        self.vision = vision
        self.vv_blocks = vision.count_vv_blocks(vv_blocks)

    @torch.no_grad()
    def features(self, images: Tensor) -> ClipFeatures:
        """Compute unit features of images. No trained weight changes them, so that they can be cached.

        Args:
            images: square, RGB (b, 3, s, s) in [0, 1].
        """
        return self.encode(self.vision.preprocess(images))

    def encode(self, preprocessed: Tensor) -> ClipFeatures:
        """Compute unit features of preprocessed images.

        Args:
            preprocessed: output of ``VisionTower.preprocess``.
        """
        features = self.vision(preprocessed, self.vv_blocks)
        return ClipFeatures(*(functional.normalize(part, dim=-1) for part in features))

    def score(self, views: ClipFeatures, photograph: ClipFeatures | None, direction: Tensor) -> ImageScores:
        """Score the images of one cloud from their features.

        Args:
            views: features of v views.
            photograph: features of one photograph, without a leading dimension; None if there is no photograph.
            direction: see ``text.direction`` (d,).
        """
        view_scores, view_maps = abnormal_probability(views, direction)
        if photograph is None:
            return ImageScores(view_maps, view_scores)
        photograph_score, photograph_map = abnormal_probability(photograph, direction)
        return ImageScores(view_maps, view_scores, photograph_map, photograph_score)

    def forward(self, views: Tensor, photograph: Tensor | None, direction: Tensor) -> ImageScores:
        """Score the images of one cloud, all in one pass through the tower.

        Args:
            views: RGB (v, 3, s, s) in [0, 1].
            photograph: RGB (3, s, s) in [0, 1]; None if there is no photograph.
            direction: see ``text.direction`` (d,).
        """
        if photograph is None:
            return self.score(self.features(views), None, direction)
        cls, patches = self.features(torch.cat([views, photograph[None]]))
        return self.score(ClipFeatures(cls[:-1], patches[:-1]), ClipFeatures(cls[-1], patches[-1]), direction)


def abnormal_probability(features: ClipFeatures, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the probabilities that images (...) and their patches (..., p, p) are abnormal.

    Args:
        features: features of the images.
        direction: see ``text.direction`` (d,).
    """
    cls, patches = features.to(direction.dtype)
    side = round(patches.shape[-2] ** 0.5)
    return (cls @ direction).sigmoid(), (patches @ direction).sigmoid().unflatten(-1, (side, side))
