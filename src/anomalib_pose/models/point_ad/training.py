# SPDX-License-Identifier: Apache-2.0
"""Training of PointAD's prompts on cached features of CLIP's frozen image tower."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from anomalib.data import Batch
from torch import Tensor
from torch.optim import Optimizer

from anomalib_pose.data.point_cloud.dataclasses import CloudBatch
from anomalib_pose.models.point_ad.cloud_grid import check_clouds
from anomalib_pose.models.point_ad.losses import CloudTargets, HybridLoss, hybrid_loss
from anomalib_pose.models.point_ad.prompts import PromptLearner
from anomalib_pose.models.point_ad.scorer import ClipFeatures, ClipScorer
from anomalib_pose.models.point_ad.text import TextTower, direction
from anomalib_pose.render.back_projection import fill_visibility

logger = logging.getLogger(__name__)


class FeatureCache:
    """Features of views in half precision, in main memory. Each object's views pass the image tower once.

    The features of nine views take 8 MB for ViT-L/14 at 336 pixels.

    Args:
        scorer: computes features.
    """

    def __init__(self, scorer: ClipScorer) -> None:
        self.scorer = scorer
        self._features: dict[str, ClipFeatures] = {}

    def __len__(self) -> int:
        return len(self._features)

    def of(self, keys: Sequence[str], views: Tensor) -> ClipFeatures:
        """Return the features of B objects: cls (B, v, d), patches (B, v, p * p, d), in half precision.

        Args:
            keys: B names of the objects, such as their paths.
            views: RGB (B, v, 3, s, s) in [0, 1].
        """
        for key, images in zip(keys, views, strict=True):
            if key not in self._features:
                self._features[key] = self.scorer.features(images).to(torch.float16, "cpu")
        objects = [self._features[key] for key in keys]
        batch = ClipFeatures(*(torch.stack(parts) for parts in zip(*objects, strict=True)))
        return batch.to(torch.float16, views.device)


def prompt_loss(
    text: TextTower, prompts: PromptLearner, features: ClipFeatures, targets: CloudTargets, *, paper: bool = False
) -> HybridLoss:
    """Compute the loss of a training step. Only the text tower runs with gradients, up to the ends of two texts.

    Args:
        text: frozen text tower.
        prompts: trained prompts.
        features: features of B objects' views: cls (B, v, d), patches (B, v, p * p, d), of any precision.
        targets: ground truth of the objects.
        paper: see ``hybrid_loss``.
    """
    return hybrid_loss(features, direction(prompts(text)), targets, paper=paper)


def prompt_optimizer(prompts: PromptLearner, learning_rate: float = 1e-3) -> Optimizer:
    """Create Adam with the published settings (section 4.1).

    Args:
        prompts: trained prompts.
        learning_rate: learning rate of all prompts.
    """
    return torch.optim.Adam(prompts.parameters(), lr=learning_rate, betas=(0.5, 0.999))


def cloud_targets(batch: CloudBatch) -> CloudTargets:
    """Collect the ground truth of a batch. Points that no view shows borrow the visibility of a near point.

    Args:
        batch: batch with views, their masks, and the points' pixels.

    Raises:
        ValueError: if the batch has no labels, masks or pixels; batches of normal objects or plain photographs have
            none.
    """
    names = ("gt_label", "view_masks", "gt_mask", "valid", "pixels", "visible")
    fields = {name: getattr(batch, name) for name in names}
    missing = [name for name, value in fields.items() if value is None]
    if missing:
        msg = f"Training of prompts needs clouds with views and masks, but this batch has no {', '.join(missing)}."
        raise ValueError(msg)
    labels, view_masks, mask, valid, pixels, visible = fields.values()
    valid = valid.flatten(1)
    borrowed = [fill_visibility(flags.cpu(), cells.cpu()) for flags, cells in zip(visible, valid, strict=True)]
    return CloudTargets(labels, view_masks, mask.flatten(1), valid, pixels, torch.stack(borrowed).to(valid.device))


class PromptTrainingMixin:
    """Training steps of a Lightning module whose ``self.model`` may be a ``PromptScorer``."""

    model: Any
    learning_rate: float
    trainer: Any
    log: Callable[..., None]

    def configure_optimizers(self) -> Optimizer | None:
        """Create the optimizer of the prompts; None if the model has no prompts to train."""
        prompts = getattr(self.model, "prompts", None)
        return None if prompts is None else prompt_optimizer(prompts, self.learning_rate)

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of the prompts on one batch of clouds."""
        del args, kwargs
        check_clouds(batch)
        loss = self.model.loss(batch)
        self.log("train_loss", loss.total.detach(), on_epoch=True, prog_bar=True, batch_size=len(batch.image))
        for name, term in loss._asdict().items():
            self.log(f"train_{name}_loss", term.detach(), on_epoch=True, batch_size=len(batch.image))
        return loss.total

    def on_train_start(self) -> None:
        """Explain the slow first epoch, and let the last epoch be validated.

        anomalib writes a checkpoint when it validates. Epochs after the last validation would be lost.
        """
        logger.info("The first epoch takes the longest: it computes CLIP's features of each view once.")
        interval, last = self.trainer.check_val_every_n_epoch, self.trainer.max_epochs or 0
        if interval and last > 0 and last % interval:
            logger.warning(
                "Validation after %d epochs instead of every %d epochs, so that the last epoch is in the checkpoint.",
                last,
                interval,
            )
            self.trainer.check_val_every_n_epoch = last

    def on_train_end(self) -> None:
        """Free the memory of the cached features."""
        self.model.forget_features()
