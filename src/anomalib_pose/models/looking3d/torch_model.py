# SPDX-License-Identifier: Apache-2.0
"""Looking3D's network: a query is matched with views of the shape it should have."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalib_pose.models.looking3d.decoder import Decoder
from anomalib_pose.models.looking3d.encoder import CELL, IMAGE_SIZE, Encoder, Projector, cells
from anomalib_pose.models.looking3d.matching import (
    affinity,
    foreground_cells,
    foreground_weights,
    match_residual,
    top_keys,
)

IMAGE_SIZES = (256, 128)


class ReferenceShape(NamedTuple):
    """What the network has to know of shapes; it is computed once a shape and used for every query.

    Args:
        descriptors: of the reference cells, times their foreground weights (B or 1, M, 256); M = g * g a view.
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
        box: around the anomaly (B, 4): center (x, y), width and height in parts of the image.
        residual: how little each cell resembles any cell of the reference (B, g, g), in [0, 1].
    """

    logit: Tensor
    box: Tensor
    residual: Tensor


def normalize(images: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """RGB in [0, 1] as the network takes it, (..., 3, size, size).

    Args:
        images: (..., 3, 256, 256).
        size: 256, or a part of it: pixels are then averaged.

    Raises:
        ValueError: if the images are of another size.
    """
    if images.shape[-3:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        msg = f"Looking3D takes RGB images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels, got {tuple(images.shape[-3:])}."
        raise ValueError(msg)
    factor = IMAGE_SIZE // size
    if factor > 1:
        images = images.unflatten(-1, (size, factor)).unflatten(-3, (size, factor)).mean((-3, -1))
    return (images - 0.5) / 0.5


def coarser(xyz: Tensor, factor: int) -> Tensor:
    """Coordinates of cells as those of larger cells: of several that are known, the one nearest to the cell's middle.

    Args:
        xyz: coordinates (..., g, g, 3), -1 where a cell is empty; each has its middle at its cell's first corner.
        factor: how many times as large as the cells along a side.
    """
    found = torch.full_like(xyz[..., ::factor, ::factor, :], -1.0)
    for row, column in itertools.product(range(factor), repeat=2):
        candidate = xyz[..., row::factor, column::factor, :]
        found = torch.where((candidate == -1).all(-1, keepdim=True), found, candidate)
    return found


class Looking3DModel(nn.Module):
    """Correspondence-matching transformer (Looking3D, section 4).

    Args:
        topk: reference cells that each query cell attends to; 0 for all.
        query_position: tell the query's cells where they are, which the paper does not.
        image_size: side in pixels that images are shrunk to, 256 or 128; the grid has g = image_size / 8 cells a side.
        query_cells: cells of the query that the decoder is given, those with most foreground; 0 for all, as in the
            paper.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self, topk: int = 100, *, query_position: bool = False, image_size: int = IMAGE_SIZE, query_cells: int = 0
    ) -> None:
        super().__init__()
        if topk < 0:
            msg = f"topk should be a number of reference cells, or 0 for all, got {topk}."
            raise ValueError(msg)
        if image_size not in IMAGE_SIZES:
            msg = f"image_size should be one of {', '.join(map(str, IMAGE_SIZES))}, got {image_size}."
            raise ValueError(msg)
        cells_there = (image_size // CELL) ** 2
        if not 0 <= query_cells <= cells_there:
            msg = f"query_cells should be 1 to {cells_there} cells of the query, or 0 for all, got {query_cells}."
            raise ValueError(msg)
        self.topk = topk
        self.query_cells = query_cells
        self.image_size = image_size
        self.encoder = Encoder()
        self.projector = Projector()
        self.attention_decoder = Decoder(query_position=query_position, grid=image_size // CELL)

    def normalize(self, images: Tensor) -> Tensor:
        """RGB (..., 3, 256, 256) in [0, 1] as the network takes it, (..., 3, 8 g, 8 g) in [-1, 1]."""
        return normalize(images, self.image_size)

    def describe(self, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors of cells times their foreground weights (B, g * g, 256), and the weights (B, g, g).

        No gradient passes: matching only chooses (section 4.3).

        Args:
            images: RGB (B, 3, 8 g, 8 g) in [-1, 1].
            features: of the encoder (B, 128, g, g).
        """
        with torch.no_grad():
            weights = foreground_weights(images)
            return cells(self.projector(features) * weights[:, None]), weights

    def reference(self, views: Tensor, xyz: Tensor, features: Tensor | None = None) -> ReferenceShape:
        """Encode the views of shapes.

        Args:
            views: RGB (B, V, 3, 256, 256) in [0, 1].
            xyz: coordinates in the frame of the mesh of what each cell shows (B, V, 32, 32, 3), -1 where it is empty.
            features: of the views (B, V, 128, g, g) if they are known.
        """
        images = self.normalize(views).flatten(0, 1)
        found = self.encoder(images) if features is None else features.flatten(0, 1)
        descriptors, _ = self.describe(images, found)
        count = len(views)
        xyz = coarser(xyz, IMAGE_SIZE // self.image_size)
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
            features: of the queries (B, 128, g, g) if they are known.
            keys: numbers of the reference cells that each query cell attends to (B, g * g, k), to use instead of those
                with the largest affinity.
            published: compute as published, which gives the same in more time.
        """
        images = self.normalize(images)
        if features is None:
            features = self.encoder(images)
        descriptors, weights = self.describe(images, features)
        affinities = affinity(descriptors, shape.descriptors)
        if keys is None and self.topk:
            keys = top_keys(affinities, self.topk)
            keys = keys if shape.chosen is None else shape.chosen[keys]
        given, places = cells(features), None
        if self.query_cells:
            places = foreground_cells(weights, self.query_cells)
            given, keys = _rows(given, places), None if keys is None else _rows(keys, places)
        decode = self.attention_decoder.published if published else self.attention_decoder
        logit, raw = decode(given, shape.context, keys, places)
        return Looking3DOutput(logit, raw.sigmoid(), match_residual(affinities, weights))


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Rows (B, n, C) of (B, m, C) by their numbers (B, n)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def anomaly_map(residual: Tensor) -> Tensor:
    """Residuals of cells as a map of the image's pixels (B, 1, 256, 256).

    Args:
        residual: (B, g, g).
    """
    return functional.interpolate(residual[:, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
