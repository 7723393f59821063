# SPDX-License-Identifier: Apache-2.0
"""Looking3D's network: a query is matched with views of the shape it should have."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.looking3d.decoder import Decoder
from anomalib_pose.models.looking3d.encoder import IMAGE_SIZE, Encoder, Projector, cells
from anomalib_pose.models.looking3d.matching import affinity, foreground_weights, match_residual, top_keys


class ReferenceShape(NamedTuple):
    """What the network has to know of shapes; it is computed once a shape and used for every query.

    Args:
        descriptors: of the reference cells, times their foreground weights (B or 1, M, 256); M = 1024 a view.
        context: of the reference cells: features and codes of their positions (B or 1, M, 256).
        chosen: numbers of the cells that ``descriptors`` holds (P,), or None if it holds all.
    """

    descriptors: Tensor
    context: Tensor
    chosen: Tensor | None = None

    def compact(self, topk: int) -> "ReferenceShape":
        """One shape with the descriptors alone that can ever be among the keys; nothing changes by it.

        Background cells have no affinity to anything, and of those the first ``topk`` go first.

        Args:
            topk: reference cells that each query cell attends to.

        Raises:
            ValueError: if there are several shapes, or the shape is compact already.
        """
        if len(self.descriptors) != 1 or self.chosen is not None:
            msg = f"One whole shape can be made compact, got {len(self.descriptors)} of them, chosen: {self.chosen}."
            raise ValueError(msg)
        empty = (self.descriptors[0] == 0).all(-1)
        chosen = (~empty | (empty.cumsum(0) <= max(topk, 1))).nonzero()[:, 0]
        return ReferenceShape(self.descriptors[:, chosen], self.context, chosen)


class Looking3DOutput(NamedTuple):
    """What the network says of queries.

    Args:
        logit: of being anomalous (B,).
        box: around the anomaly (B, 4): centre (x, y), width and height in parts of the image.
        residual: how little each cell resembles any cell of the reference (B, 32, 32), in [0, 1].
    """

    logit: Tensor
    box: Tensor
    residual: Tensor


def normalise(images: Tensor) -> Tensor:
    """RGB in [0, 1] as the network takes it.

    Args:
        images: (..., 3, 256, 256).

    Raises:
        ValueError: if the images are of another size.
    """
    if images.shape[-3:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        msg = f"Looking3D takes RGB images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels, got {tuple(images.shape[-3:])}."
        raise ValueError(msg)
    return (images - 0.5) / 0.5


class Looking3DModel(nn.Module):
    """Correspondence-matching transformer (Looking3D, section 4).

    Args:
        topk: reference cells that each query cell attends to; 0 for all.
        query_position: tell the query's cells where they are, which the paper does not.
    """

    def __init__(self, topk: int = 100, *, query_position: bool = False) -> None:
        super().__init__()
        if topk < 0:
            msg = f"topk should be a number of reference cells, or 0 for all, got {topk}."
            raise ValueError(msg)
        self.topk = topk
        self.encoder = Encoder()
        self.projector = Projector()
        self.attention_decoder = Decoder(query_position=query_position)

    def describe(self, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors of cells times their foreground weights (B, 1024, 256), and the weights (B, 32, 32).

        No gradient passes: matching only chooses (section 4.3).

        Args:
            images: RGB (B, 3, 256, 256) in [-1, 1].
            features: of the encoder (B, 128, 32, 32).
        """
        with torch.no_grad():
            weights = foreground_weights(images)
            return cells(self.projector(features) * weights[:, None]), weights

    def reference(self, views: Tensor, xyz: Tensor, features: Tensor | None = None) -> ReferenceShape:
        """Encode the views of shapes.

        Args:
            views: RGB (B, V, 3, 256, 256) in [0, 1].
            xyz: coordinates in the frame of the mesh of what each cell shows (B, V, 32, 32, 3), -1 where it is empty.
            features: of the views (B, V, 128, 32, 32) if they are known.
        """
        images = normalise(views).flatten(0, 1)
        found = self.encoder(images) if features is None else features.flatten(0, 1)
        descriptors, _ = self.describe(images, found)
        count = len(views)
        context = self.attention_decoder.context(
            cells(found).reshape(count, -1, found.shape[1]), xyz.flatten(1, 3).to(found.device)
        )
        return ReferenceShape(descriptors.reshape(count, -1, descriptors.shape[-1]), context)

    def forward(
        self,
        images: Tensor,
        shape: ReferenceShape,
        features: Tensor | None = None,
        keys: Tensor | None = None,
        *,
        published: bool = False,
    ) -> Looking3DOutput:
        """Compare queries with shapes.

        Args:
            images: RGB (B, 3, 256, 256) in [0, 1].
            shape: one for all queries, or one each.
            features: of the queries (B, 128, 32, 32) if they are known.
            keys: numbers of the reference cells that each query cell attends to (B, 1024, k), to use instead of those
                with the largest affinity.
            published: compute as published, which gives the same in more time.
        """
        images = normalise(images)
        if features is None:
            features = self.encoder(images)
        descriptors, weights = self.describe(images, features)
        affinities = affinity(descriptors, shape.descriptors)
        if keys is None and self.topk:
            keys = top_keys(affinities, self.topk)
            keys = keys if shape.chosen is None else shape.chosen[keys]
        decode = self.attention_decoder.published if published else self.attention_decoder
        logit, raw = decode(cells(features), shape.context, keys)
        return Looking3DOutput(logit, raw.sigmoid(), match_residual(affinities, weights))


def anomaly_map(residual: Tensor) -> Tensor:
    """Residuals of cells as a map of the image's pixels (B, 1, 256, 256).

    Args:
        residual: (B, 32, 32).
    """
    return functional.interpolate(residual[:, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
