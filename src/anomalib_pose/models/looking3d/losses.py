# SPDX-License-Identifier: Apache-2.0
"""The two losses of Looking3D: alignment of descriptors between views, and label and box of the query."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou_loss

from anomalib_pose.models.looking3d.encoder import CELL, IMAGE_SIZE, Encoder, Projector, cell_index, cells
from anomalib_pose.models.looking3d.matching import foreground_weights
from anomalib_pose.models.looking3d.torch_model import normalize

_TEMPERATURE = 0.1
_BOX_WEIGHT = 5.0
_OVERLAP_WEIGHT = 2.0


def contrast(queries: Tensor, keys: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    r"""Compute InfoNCE over the keys of all pairs; a scalar (section 4.2).

    .. math:: -\frac{1}{N} \sum_i \log \frac{\exp(q_i \cdot k_i / \tau)}{\sum_j \exp(q_i \cdot k_j / \tau)}

    Args:
        queries: descriptors (N, C).
        keys: descriptors (N, C); key i is the positive of query i.
        temperature: divisor of the dot products.
    """
    products = queries.float() @ keys.float().T / temperature
    return functional.cross_entropy(products, torch.arange(len(queries), device=queries.device))


def task_loss(logit: Tensor, box: Tensor, label: Tensor, true_box: Tensor) -> Tensor:
    """Compute the loss of labels and boxes; a scalar (section 4.4).

    The loss is the cross-entropy of the label, plus 5 L1 + 2 (1 - GIoU) of the box for anomalous queries. Each sum is
    divided by the number of queries. Anomalous queries without a true box contribute only to the cross-entropy.

    Args:
        logit: logit of the anomalous class (B,).
        box: predicted center, width and height as fractions of the image (B, 4).
        label: 1 where anomalous (B,).
        true_box: as ``box``; zeros for no box.
    """
    classes = functional.binary_cross_entropy_with_logits(logit.float(), label.float())
    has_box = label.bool() & (true_box[:, 2:] > 0).all(-1)
    box, true_box = box.float(), true_box.float()
    distance = (box - true_box).abs().sum(-1)
    iou_loss = generalized_box_iou_loss(box_convert(box, "cxcywh", "xyxy"), box_convert(true_box, "cxcywh", "xyxy"))
    boxes = torch.where(has_box, _BOX_WEIGHT * distance + _OVERLAP_WEIGHT * iou_loss, 0.0)
    return classes + boxes.sum() / len(logit)


class Alignment(nn.Module):
    """Alignment loss with its key branch: moving averages of encoder and projector, without gradients.

    Args:
        encoder: trained encoder.
        projector: trained projector.
        momentum: decay of the moving averages at each step.
        image_size: side in pixels that images are shrunk to.
    """

    def __init__(
        self, encoder: Encoder, projector: Projector, momentum: float = 0.999, image_size: int = IMAGE_SIZE
    ) -> None:
        super().__init__()
        self.encoder_ema = copy.deepcopy(encoder).requires_grad_(False)
        self.projector_ema = copy.deepcopy(projector).requires_grad_(False)
        self.momentum = momentum
        self.image_size = image_size

    @torch.no_grad()
    def update(self, encoder: Encoder, projector: Projector) -> None:
        """Update the moving averages of the parameters. Statistics of batch normalization come from the key images.

        Args:
            encoder: trained encoder.
            projector: trained projector.
        """
        for average, trained in ((self.encoder_ema, encoder), (self.projector_ema, projector)):
            for mean, value in zip(average.parameters(), trained.parameters(), strict=True):
                mean.lerp_(value, 1 - self.momentum)

    def forward(self, encoder: Encoder, projector: Projector, query: Tensor, pair: Tensor, points: Tensor) -> Tensor:
        """Compute the alignment loss of a batch; a scalar (section 4.2).

        The first half of the objects contributes pairs of two views with true correspondences. The second half
        contributes pairs of the query and the first view; each point corresponds to its most similar query cell.

        Args:
            encoder: trained encoder.
            projector: trained projector.
            query: RGB (B, 3, 256, 256) in [0, 1].
            pair: two views of each object (B, 2, 3, 256, 256) in [0, 1].
            points: corresponding points of both views (B, m, 2, 2): point, view, (row, col) in pixels.
        """
        half = len(query) // 2
        # keys: the second view of pairs of views, and the first view of pairs with the query
        key_images = normalize(torch.cat([pair[:half, 1], pair[half:, 0]]), self.image_size)
        grid = self.image_size // CELL
        key_index = cell_index(torch.cat([points[:half, :, 1], points[half:, :, 0]]), grid)
        with torch.no_grad():
            keys = _describe(self.encoder_ema(key_images), key_images, key_index, self.projector_ema)
        images = normalize(torch.cat([pair[:half, 0], query[half:]]), self.image_size)
        features = encoder(images)
        with torch.no_grad():
            query_cells = cells(projector(features[half:]) * foreground_weights(images[half:])[:, None])
            partners = (keys[half:] @ query_cells.transpose(1, 2)).argmax(-1)
        index = torch.cat([cell_index(points[:half, :, 0], grid), partners])
        queries = _describe(features, images, index, projector)
        return contrast(queries.flatten(0, 1), keys.flatten(0, 1))


def _describe(features: Tensor, images: Tensor, index: Tensor, projector: Projector) -> Tensor:
    """Compute descriptors of selected cells, times their foreground weights (B, m, 256).

    Args:
        features: (B, 128, g, g).
        images: images that the features come from, RGB (B, 3, 8 g, 8 g) in [-1, 1].
        index: indices of the cells (B, m).
        projector: computes descriptors.
    """
    selected = features.flatten(2).gather(2, index[:, None].expand(-1, features.shape[1], -1))
    weights = foreground_weights(images).flatten(1).gather(1, index)
    # a row of cells is an image of height m to the projector's 1 x 1 convolutions
    return cells(projector(selected[..., None])) * weights[..., None]
