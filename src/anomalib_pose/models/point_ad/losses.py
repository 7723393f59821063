# SPDX-License-Identifier: Apache-2.0
"""PointAD's hybrid loss: a global and a local term for views, and the same for points (section 3.3)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from anomalib_pose.models.point_ad.scorer import ClipFeatures
from anomalib_pose.render.back_projection import back_project

_EPSILON = 1e-5
_FOCUS = 2
"""Exponent gamma of the focal loss."""


class CloudTargets(NamedTuple):
    """Ground truth of B objects, and the visibility of their points; n cells of the grid of points.

    Args:
        labels: whether the object is defective (B,).
        view_masks: pixels of the views that show a defect (B, v, s, s).
        points: cells whose point is defective (B, n).
        valid: cells that hold a point (B, n).
        pixels: row and column of each point in each view (B, v, n, 2).
        visible: whether the view contributes to the point (B, v, n).
    """

    labels: Tensor
    view_masks: Tensor
    points: Tensor
    valid: Tensor
    pixels: Tensor
    visible: Tensor


class HybridLoss(NamedTuple):
    """The four terms of the loss; all have weight 1.

    Args:
        views_local: focal and dice losses of the views' pixels.
        views_global: cross-entropy of whole views.
        points_local: dice losses of the points.
        points_global: cross-entropy of whole objects.
    """

    views_local: Tensor
    views_global: Tensor
    points_local: Tensor
    points_global: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of the four terms."""
        return torch.stack(list(self)).sum()


def hybrid_loss(features: ClipFeatures, direction: Tensor, targets: CloudTargets, *, paper: bool = False) -> HybridLoss:
    """Compute the loss of B objects. Gradients flow to the direction, and through it to the texts.

    The published program averages views of different objects in the loss of whole objects, and counts cells without a
    point as normal points with a wrong prediction. Both are corrected here, unless ``paper`` is true.

    Args:
        features: features of the views: cls (B, v, d), patches (B, v, p * p, d).
        direction: see ``text.direction`` (d,).
        targets: ground truth of the objects.
        paper: compute the loss as published.
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
    # the published program regroups the object-major rows as if they were view-major
    objects = logits.reshape(views, count).mean(0) if paper else logits.mean(1)
    return HybridLoss(
        focal(maps, masks) + both_dice(maps.flatten(0, 1).flatten(1), masks.flatten(0, 1).flatten(1)),
        functional.binary_cross_entropy_with_logits(logits, view_labels),
        points_loss(maps, targets, paper=paper),
        functional.binary_cross_entropy_with_logits(objects, targets.labels.to(logits.dtype)),
    )


def points_loss(maps: Tensor, targets: CloudTargets, *, paper: bool) -> Tensor:
    """Compute the dice losses of the points' abnormal and normal probabilities; a scalar.

    Args:
        maps: abnormal probabilities of the views' pixels (B, v, s, s).
        targets: ground truth of the objects.
        paper: count cells without a point as normal points, as published.
    """
    objects = zip(maps, targets.pixels, targets.visible, strict=True)
    abnormal = torch.stack([back_project(view_maps, pixels, visible) for view_maps, pixels, visible in objects])
    visible_anywhere = targets.visible.any(1)
    defective = targets.points.to(maps.dtype)
    normal_target = 1 - defective
    if not paper:
        valid = targets.valid.to(maps.dtype)
        defective, normal_target = defective * valid, normal_target * valid
    return dice(abnormal, defective) + dice(visible_anywhere.to(maps.dtype) - abnormal, normal_target)


def focal(probability: Tensor, target: Tensor) -> Tensor:
    r"""Compute the two-class focal loss :math:`-(1 - p_t)^2 \log p_t`, mean over all elements; a scalar.

    Args:
        probability: probability of the second class, any shape.
        target: 1 where the second class is true, else 0, of the same shape.
    """
    # smoothed labels, as published: the true class has weight 1 - epsilon, the other class epsilon
    weight = target.clamp(_EPSILON, 1 - _EPSILON)
    true_probability = weight * probability + (1 - weight) * (1 - probability) + _EPSILON
    return -((1 - true_probability) ** _FOCUS * true_probability.log()).mean()


def dice(probability: Tensor, target: Tensor) -> Tensor:
    r"""Compute the dice loss :math:`1 - (2 \sum p t + 1) / (\sum p + \sum t + 1)`, mean over samples; a scalar.

    Args:
        probability: probability of each element (b, n).
        target: 1 or 0 (b, n).
    """
    overlap = (probability * target).sum(-1)
    return 1 - ((2 * overlap + 1) / (probability.sum(-1) + target.sum(-1) + 1)).mean()


def both_dice(probability: Tensor, target: Tensor) -> Tensor:
    """Add the dice losses of the abnormal and of the normal class; a scalar.

    Args:
        probability: probability that each element is abnormal (b, n).
        target: 1 where the element is abnormal, else 0 (b, n).
    """
    return dice(probability, target) + dice(1 - probability, 1 - target)
