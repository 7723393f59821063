# SPDX-License-Identifier: Apache-2.0
"""Scores of views by CLIP's features and one direction."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.point_ad.types import ViewScores
from anomalib_pose.models.point_ad.vision import VisionTower


class ClipFeatures(NamedTuple):
    """Unit features of images, of any leading shape.

    Args:
        cls: of the images as a whole (..., d).
        patches: of their patches (..., p * p, d), row by row.
    """

    cls: Tensor
    patches: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "ClipFeatures":
        """The same in another precision.

        Args:
            dtype: of both parts.
            device: to move to, or None to stay.
        """
        return ClipFeatures(*(part.to(device or part.device, dtype) for part in self))


class ClipScorer(nn.Module):
    """Features of images, and how abnormal they are by a direction.

    Args:
        vision: image tower.
        vv_blocks: number of last blocks whose values attend to values; None for 19 of 24, or the same share.

    Raises:
        ValueError: if the tower has fewer blocks.
    """

    def __init__(self, vision: VisionTower, vv_blocks: int | None = None) -> None:
        super().__init__()
        self.vision = vision
        self.vv_blocks = vision.second_path(vv_blocks)

    @torch.no_grad()
    def features(self, images: Tensor) -> ClipFeatures:
        """Features of images; they depend on nothing that is trained and can be kept, in half precision too.

        Args:
            images: square, RGB (b, 3, s, s) in [0, 1].
        """
        return self.encode(self.vision.prepare(images))

    def encode(self, prepared: Tensor) -> ClipFeatures:
        """Features of images that are prepared already.

        Args:
            prepared: as ``VisionTower.prepare`` makes them.
        """
        return ClipFeatures(*(functional.normalize(part, dim=-1) for part in self.vision(prepared, self.vv_blocks)))

    def score(self, views: ClipFeatures, photograph: ClipFeatures | None, direction: Tensor) -> ViewScores:
        """How abnormal views are, their patches, and the photograph.

        Args:
            views: features of v views.
            photograph: features of one photograph, without a leading dimension, or None.
            direction: see ``text.direction`` (d,).
        """
        scores, maps = abnormality(views, direction)
        if photograph is None:
            return ViewScores(maps, scores)
        photograph_score, photograph_map = abnormality(photograph, direction)
        return ViewScores(maps, scores, photograph_map, photograph_score)

    def forward(self, views: Tensor, photograph: Tensor | None, direction: Tensor) -> ViewScores:
        """Scores of one object; all of its images pass the tower at once.

        Args:
            views: RGB (v, 3, s, s) in [0, 1].
            photograph: RGB (3, s, s) in [0, 1], or None.
            direction: see ``text.direction`` (d,).
        """
        if photograph is None:
            return self.score(self.features(views), None, direction)
        cls, patches = self.features(torch.cat([views, photograph[None]]))
        return self.score(ClipFeatures(cls[:-1], patches[:-1]), ClipFeatures(cls[-1], patches[-1]), direction)


def abnormality(features: ClipFeatures, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities that images (...) and their patches (..., p, p) are abnormal.

    Args:
        features: of the images.
        direction: see ``text.direction`` (d,).
    """
    cls, patches = features.to(direction.dtype)
    side = round(patches.shape[-2] ** 0.5)
    return (cls @ direction).sigmoid(), (patches @ direction).sigmoid().unflatten(-1, (side, side))
