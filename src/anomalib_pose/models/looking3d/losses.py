# SPDX-License-Identifier: Apache-2.0
"""The two losses of Looking3D: descriptors that agree between views, and what is said of the query."""

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
    """InfoNCE: each query should resemble its own key more than all other keys, of its own pair and of the others.

    Args:
        queries: descriptors (N, C).
        keys: descriptors (N, C); key i is the positive of query i.
        temperature: that the products are divided by.
    """
    products = queries.float() @ keys.float().T / temperature
    return functional.cross_entropy(products, torch.arange(len(queries), device=queries.device))


def task_loss(logit: Tensor, box: Tensor, label: Tensor, true_box: Tensor) -> Tensor:
    """Cross-entropy of the label, and for anomalous queries five times L1 and twice 1 - GIoU of the box (section 4.4).

    Every sum is divided by the number of queries. Anomalous queries without a box count for the label alone.

    Args:
        logit: of being anomalous (B,).
        box: (B, 4): center, width and height in parts of the image.
        label: 1 where anomalous (B,).
        true_box: as ``box``; zeros where there is none.
    """
    classes = functional.binary_cross_entropy_with_logits(logit.float(), label.float())
    known = label.bool() & (true_box[:, 2:] > 0).all(-1)
    box, true_box = box.float(), true_box.float()
    distance = (box - true_box).abs().sum(-1)
    overlap = generalized_box_iou_loss(box_convert(box, "cxcywh", "xyxy"), box_convert(true_box, "cxcywh", "xyxy"))
    boxes = torch.where(known, _BOX_WEIGHT * distance + _OVERLAP_WEIGHT * overlap, 0.0)
    return classes + boxes.sum() / len(logit)


class Alignment(nn.Module):
    """Key branch of the alignment loss: moving averages of encoder and projector, which no gradient reaches.

    Args:
        encoder: that is trained.
        projector: that is trained.
        momentum: share of the average that a step keeps.
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
        """Let the averages follow. Statistics of batch normalization are the average's own, of its own images.

        Args:
            encoder: that is trained.
            projector: that is trained.
        """
        for average, trained in ((self.encoder_ema, encoder), (self.projector_ema, projector)):
            for mean, value in zip(average.parameters(), trained.parameters(), strict=True):
                mean.lerp_(value, 1 - self.momentum)

    def forward(self, encoder: Encoder, projector: Projector, query: Tensor, pair: Tensor, points: Tensor) -> Tensor:
        """Alignment loss of a batch (section 4.2).

        The first half of the objects give pairs of two views, whose correspondences are known. The others give pairs of
        the query and the first view, where each point's partner is the query's cell that resembles it most.

        Args:
            encoder: that is trained.
            projector: that is trained.
            query: RGB (B, 3, 256, 256) in [0, 1].
            pair: two views of each object (B, 2, 3, 256, 256) in [0, 1].
            points: what corresponds in them (B, m, 2, 2): point, view, (row, col) in pixels.
        """
        known = len(query) // 2
        # what the key branch sees is the second view of true pairs, and the first view of the others
        key_images = normalize(torch.cat([pair[:known, 1], pair[known:, 0]]), self.image_size)
        grid = self.image_size // CELL
        key_index = cell_index(torch.cat([points[:known, :, 1], points[known:, :, 0]]), grid)
        with torch.no_grad():
            keys = _describe(self.encoder_ema(key_images), key_images, key_index, self.projector_ema)
        images = normalize(torch.cat([pair[:known, 0], query[known:]]), self.image_size)
        features = encoder(images)
        with torch.no_grad():
            everywhere = cells(projector(features[known:]) * foreground_weights(images[known:])[:, None])
            partners = (keys[known:] @ everywhere.transpose(1, 2)).argmax(-1)
        index = torch.cat([cell_index(points[:known, :, 0], grid), partners])
        queries = _describe(features, images, index, projector)
        return contrast(queries.flatten(0, 1), keys.flatten(0, 1))


def _describe(features: Tensor, images: Tensor, index: Tensor, projector: Projector) -> Tensor:
    """Descriptors of some cells times their foreground weights (B, m, 256).

    Args:
        features: (B, 128, g, g).
        images: that they are of, RGB (B, 3, 8 g, 8 g) in [-1, 1].
        index: numbers of the cells (B, m).
        projector: of the features.
    """
    chosen = features.flatten(2).gather(2, index[:, None].expand(-1, features.shape[1], -1))
    weights = foreground_weights(images).flatten(1).gather(1, index)
    # a row of cells is an image of height m to the projector's 1 x 1 convolutions
    return cells(projector(chosen[..., None])) * weights[..., None]
