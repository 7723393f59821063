# SPDX-License-Identifier: Apache-2.0
"""The hybrid loss of PointAD: views and points, each as a whole and place by place (section 3.3)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.models.point_ad.scorer import ClipFeatures
from anomalib_pose.render.back_projection import back_project

_EPSILON = 1e-5
_FOCUS = 2


class CloudTargets(NamedTuple):
    """What is known of the B objects that a loss is computed on; n = cells of the grid of points.

    Args:
        labels: whether the object is defective (B,).
        view_masks: pixels of the views that show a defect (B, v, s, s).
        points: cells whose point is defective (B, n).
        valid: cells that hold a point (B, n).
        pixels: row and column of each point in each view (B, v, n, 2).
        visible: whether the view counts for the point (B, v, n).
    """

    labels: Tensor
    view_masks: Tensor
    points: Tensor
    valid: Tensor
    pixels: Tensor
    visible: Tensor


class HybridLoss(NamedTuple):
    """The four terms, which count alike.

    Args:
        views_local: of the pixels of the views.
        views_global: of the views as a whole.
        points_local: of the points.
        points_global: of the objects as a whole.
    """

    views_local: Tensor
    views_global: Tensor
    points_local: Tensor
    points_global: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return torch.stack(list(self)).sum()


def hybrid_loss(
    features: ClipFeatures, direction: Tensor, targets: CloudTargets, *, paper_losses: bool = False
) -> HybridLoss:
    """Loss of B objects. Gradients flow to the direction, and through it to the texts.

    As published, the loss of whole objects averages views of different objects, and cells without a point count as
    normal points that are predicted wrongly. Both is corrected unless asked for.

    Args:
        features: of the views: cls (B, v, d), patches (B, v, p * p, d).
        direction: see ``text.direction`` (d,).
        targets: what is known of the objects.
        paper_losses: compute it as published.
    """
    cls, patches = features.to(direction.dtype)
    logits = cls @ direction
    count, views = logits.shape
    size, side = targets.view_masks.shape[-1], round(patches.shape[2] ** 0.5)
    probabilities = (patches @ direction).sigmoid().view(count * views, 1, side, side)
    maps = functional.interpolate(probabilities, (size, size), mode="bilinear", align_corners=False)
    maps = maps.view(count, views, size, size)
    masks = targets.view_masks.to(maps.dtype)
    view_labels = targets.view_masks.flatten(2).any(-1).to(logits.dtype)
    # the published code takes the rows of all views in the order of the objects for an order of the views
    objects = logits.reshape(views, count).mean(0) if paper_losses else logits.mean(1)
    return HybridLoss(
        focal(maps, masks) + both_dice(maps.flatten(0, 1).flatten(1), masks.flatten(0, 1).flatten(1)),
        functional.binary_cross_entropy_with_logits(logits, view_labels),
        points_loss(maps, targets, paper_losses=paper_losses),
        functional.binary_cross_entropy_with_logits(objects, targets.labels.to(logits.dtype)),
    )


def points_loss(maps: Tensor, targets: CloudTargets, *, paper_losses: bool) -> Tensor:
    """Dice losses of the points' probabilities of being abnormal and of being normal.

    Args:
        maps: probabilities of the views' pixels (B, v, s, s).
        targets: what is known of the objects.
        paper_losses: let cells without a point count as normal ones.
    """
    given = zip(maps, targets.pixels, targets.visible, strict=True)
    abnormal = torch.stack([back_project(one, pixels, visible) for one, pixels, visible in given])
    seen = targets.visible.any(1)
    defective = targets.points.to(maps.dtype)
    normal_target = 1 - defective
    if not paper_losses:
        valid = targets.valid.to(maps.dtype)
        defective, normal_target = defective * valid, normal_target * valid
    return dice(abnormal, defective) + dice(seen.to(maps.dtype) - abnormal, normal_target)


def focal(probability: Tensor, target: Tensor) -> Tensor:
    """Focal loss of two classes, which weighs what is predicted well already less; a scalar.

    Args:
        probability: of the second class, any shape.
        target: 1 where it is the second class, else 0, of the same shape.
    """
    # the true class counts with 1 - epsilon, the other with epsilon
    share = target.clamp(_EPSILON, 1 - _EPSILON)
    right = share * probability + (1 - share) * (1 - probability) + _EPSILON
    return -((1 - right) ** _FOCUS * right.log()).mean()


def dice(probability: Tensor, target: Tensor) -> Tensor:
    """Dice loss, the mean over samples; a scalar.

    Args:
        probability: of each place (b, n).
        target: 1 or 0 (b, n).
    """
    overlap = (probability * target).sum(-1)
    return 1 - ((2 * overlap + 1) / (probability.sum(-1) + target.sum(-1) + 1)).mean()


def both_dice(probability: Tensor, target: Tensor) -> Tensor:
    """Dice losses of what is abnormal and of what is normal; a scalar.

    Args:
        probability: of each place to be abnormal (b, n).
        target: 1 where it is, else 0 (b, n).
    """
    return dice(probability, target) + dice(1 - probability, 1 - target)
