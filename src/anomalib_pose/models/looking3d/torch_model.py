# SPDX-License-Identifier: Apache-2.0
"""Looking3D's network: it compares a query with reference views of its shape."""

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
"""Sides in pixels that the network accepts for its images."""


class ReferenceShape(NamedTuple):
    """Encoded reference views of shapes, computed once for each shape and used for all of its queries.

    Args:
        descriptors: descriptors of the reference cells, times their foreground weights (B or 1, M, 256); M = g * g
            for each view.
        context: features and position codes of the reference cells (B or 1, M, 256).
        cell_indices: indices of the cells in ``descriptors`` (P,); None for all cells.
    """

    descriptors: Tensor
    context: Tensor
    cell_indices: Tensor | None = None

    def compact(self, topk: int) -> "ReferenceShape":
        """Drop the descriptors of one shape that can never be among the keys; results do not change.

        All affinities of background cells are 0, and among equal affinities the first ``topk`` cells win.

        Args:
            topk: number of reference cells that each query cell attends to.

        Raises:
            ValueError: if there are several shapes, or the shape is compact already.
        """
        if len(self.descriptors) != 1 or self.cell_indices is not None:
            state = "whole" if self.cell_indices is None else "compact"
            msg = f"Expected one whole shape to make compact, got {len(self.descriptors)}, {state}."
            raise ValueError(msg)
        empty = (self.descriptors[0] == 0).all(-1)
        cell_indices = (~empty | (empty.cumsum(0) <= max(topk, 1))).nonzero()[:, 0]
        return ReferenceShape(self.descriptors[:, cell_indices], self.context, cell_indices)


class Looking3DOutput(NamedTuple):
    """Predictions for queries.

    Args:
        logit: logit of the anomalous class (B,).
        box: box around the anomaly (B, 4): center (x, y), width and height as fractions of the image.
        residual: foreground weight of each cell, minus its largest cosine with the reference (B, g, g), in [0, 1].
    """

    logit: Tensor
    box: Tensor
    residual: Tensor


def normalize(images: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """Shrink images to the network's size and normalize them to [-1, 1]: (..., 3, size, size).

    Args:
        images: RGB (..., 3, 256, 256) in [0, 1].
        size: 256, or a divisor of it; blocks of pixels are then averaged.

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
    """Merge cells into larger ones. A merged cell takes the coordinates of the nonempty cell nearest to its center.

    Args:
        xyz: coordinates (..., g, g, 3), -1 where a cell is empty; they are sampled at the first corner of each cell.
        factor: number of cells along the side of a merged cell.
    """
    merged = torch.full_like(xyz[..., ::factor, ::factor, :], -1.0)
    for row, column in itertools.product(range(factor), repeat=2):
        candidate = xyz[..., row::factor, column::factor, :]
        merged = torch.where((candidate == -1).all(-1, keepdim=True), merged, candidate)
    return merged


class Looking3DModel(nn.Module):
    """Correspondence-matching transformer (Looking3D, section 4).

    Args:
        topk: number of reference cells that each query cell attends to; 0 for all.
        query_position: add position encodings to the query's cells; the paper has none.
        image_size: side in pixels that images are shrunk to, 256 or 128; the grid has g = image_size / 8 cells along a
            side.
        query_cells: number of query cells in the decoder, those with most foreground; 0 for all, as in the paper.

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
        cell_count = (image_size // CELL) ** 2
        if not 0 <= query_cells <= cell_count:
            msg = f"query_cells should be 1 to {cell_count} cells of the query, or 0 for all, got {query_cells}."
            raise ValueError(msg)
        self.topk = topk
        self.query_cells = query_cells
        self.image_size = image_size
        self.encoder = Encoder()
        self.projector = Projector()
        self.attention_decoder = Decoder(query_position=query_position, grid=image_size // CELL)

    def normalize(self, images: Tensor) -> Tensor:
        """Shrink and normalize RGB images (..., 3, 256, 256) in [0, 1]: (..., 3, 8 g, 8 g) in [-1, 1]."""
        return normalize(images, self.image_size)

    def describe(self, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute descriptors times foreground weights (B, g * g, 256), and the foreground weights (B, g, g).

        No gradient passes: matching only selects cells (section 4.3).

        Args:
            images: RGB (B, 3, 8 g, 8 g) in [-1, 1].
            features: features of the encoder (B, 128, g, g).
        """
        with torch.no_grad():
            weights = foreground_weights(images)
            return cells(self.projector(features) * weights[:, None]), weights

    def reference(self, views: Tensor, xyz: Tensor, features: Tensor | None = None) -> ReferenceShape:
        """Encode the views of shapes.

        Args:
            views: RGB (B, V, 3, 256, 256) in [0, 1].
            xyz: surface coordinates of each cell in the frame of the mesh (B, V, 32, 32, 3), -1 where it is empty.
            features: features of the views (B, V, 128, g, g); None to compute them.
        """
        images = self.normalize(views).flatten(0, 1)
        features = self.encoder(images) if features is None else features.flatten(0, 1)
        descriptors, _ = self.describe(images, features)
        count = len(views)
        xyz = coarser(xyz, IMAGE_SIZE // self.image_size)
        context = self.attention_decoder.context(
            cells(features).reshape(count, -1, features.shape[1]), xyz.flatten(1, 3).to(features.device)
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
            shape: one shape for all queries, or one for each query.
            features: features of the queries (B, 128, g, g); None to compute them.
            keys: indices of the reference cells that each query cell attends to (B, g * g, k); None for those with the
                largest affinity.
            published: use the published form of attention, which has the same result and takes more time.
        """
        images = self.normalize(images)
        if features is None:
            features = self.encoder(images)
        descriptors, weights = self.describe(images, features)
        affinities = affinity(descriptors, shape.descriptors)
        if keys is None and self.topk:
            keys = top_keys(affinities, self.topk)
            keys = keys if shape.cell_indices is None else shape.cell_indices[keys]
        query, places = cells(features), None
        if self.query_cells:
            places = foreground_cells(weights, self.query_cells)
            query, keys = _rows(query, places), None if keys is None else _rows(keys, places)
        decode = self.attention_decoder.published if published else self.attention_decoder
        logit, raw_box = decode(query, shape.context, keys, places)
        return Looking3DOutput(logit, raw_box.sigmoid(), match_residual(affinities, weights))


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Select rows (B, n, C) of (B, m, C) by their indices (B, n)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))


def anomaly_map(residual: Tensor) -> Tensor:
    """Upsample the residuals of cells to the pixels of the image (B, 1, 256, 256), bilinear.

    Args:
        residual: (B, g, g).
    """
    return functional.interpolate(residual[:, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
