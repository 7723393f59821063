# SPDX-License-Identifier: Apache-2.0
"""Learning the prompts from features that are computed once an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anomalib_pose.data.point_cloud.dataclasses import CloudBatch
from anomalib_pose.models.point_ad.losses import CloudTargets, HybridLoss, hybrid_loss
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipFeatures, ClipScorer
from anomalib_pose.models.point_ad.text import TextTower, direction
from anomalib_pose.render.back_projection import fill_visibility


class FeatureCache:
    """Features of views in half precision, in memory; an object's views pass the image tower the first time alone.

    An object with nine views takes 8 MB for ViT-L/14 at 336 pixels.

    Args:
        scorer: that computes features.
    """

    def __init__(self, scorer: ClipScorer) -> None:
        self.scorer = scorer
        self._known: dict[str, ClipFeatures] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, keys: Sequence[str], views: Tensor) -> ClipFeatures:
        """Features of B objects' views: cls (B, v, d), patches (B, v, p * p, d), in half precision.

        Args:
            keys: B names of the objects, such as their paths.
            views: RGB (B, v, 3, s, s) in [0, 1].
        """
        for key, images in zip(keys, views, strict=True):
            if key not in self._known:
                self._known[key] = self.scorer.features(images).to(torch.float16, "cpu")
        found = [self._known[key] for key in keys]
        stacked = ClipFeatures(torch.stack([one.cls for one in found]), torch.stack([one.patches for one in found]))
        return stacked.to(torch.float16, views.device)


def prompt_loss(
    text: TextTower,
    prompts: PromptLearner,
    features: ClipFeatures,
    targets: CloudTargets,
    *,
    paper_losses: bool = False,
) -> HybridLoss:
    """Loss of a training step; the text tower, as far as the ends of two texts, is all that runs with gradients.

    Args:
        text: frozen text tower.
        prompts: that are learned.
        features: of B objects' views: cls (B, v, d), patches (B, v, p * p, d), of any precision.
        targets: what is known of the objects.
        paper_losses: see ``hybrid_loss``.
    """
    return hybrid_loss(features, direction(prompts(text)), targets, paper_losses=paper_losses)


def prompt_optimizer(prompts: PromptLearner, learning_rate: float = 1e-3) -> torch.optim.Optimizer:
    """Adam as published (section 4.1).

    Args:
        prompts: that are learned.
        learning_rate: of all of them.
    """
    return torch.optim.Adam(prompts.parameters(), lr=learning_rate, betas=(0.5, 0.999))


def cloud_targets(batch: CloudBatch) -> CloudTargets:
    """What the loss needs to know of a batch; points that no view shows borrow the views of a near one.

    Args:
        batch: with views, their masks, and the points' pixels.

    Raises:
        ValueError: if the batch has no labels, masks or pixels, as batches of normal objects or photographs alone.
    """
    names = ("gt_label", "view_masks", "gt_mask", "valid", "pixels", "visible")
    found = {name: getattr(batch, name) for name in names}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        msg = f"Prompts are learned from clouds with views and masks, and this batch has no {', '.join(missing)}."
        raise ValueError(msg)
    labels, view_masks, mask, valid, pixels, visible = found.values()
    valid = valid.flatten(1)
    borrowed = [fill_visibility(seen.cpu(), cells.cpu()) for seen, cells in zip(visible, valid, strict=True)]
    return CloudTargets(labels, view_masks, mask.flatten(1), valid, pixels, torch.stack(borrowed).to(valid.device))
