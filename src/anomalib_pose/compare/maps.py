# SPDX-License-Identifier: Apache-2.0
"""Residual maps from images and features, and operations on anomaly maps."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def squared_difference(query: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Compute the squared difference, summed over channels."""
    return (query - reference).square().sum(1)


def upsample(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b height width"]:
    """Resize maps to ``(height, width)`` bilinearly, without aligned corners."""
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def gaussian_blur_mirrored(maps: Float[Tensor, "b h w"], sigma: float, truncate: float = 4.0) -> Float[Tensor, "b h w"]:
    """Blur maps with a Gaussian; the border is mirrored with its edge pixel repeated, as in ``scipy.ndimage``.

    Args:
        maps: images (B, H, W).
        sigma: standard deviation in pixels; 0 returns the maps unchanged.
        truncate: radius of the kernel in standard deviations.
    """
    if sigma <= 0:
        return maps
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = (kernel / kernel.sum()).to(maps)
    blurred = maps[:, None]
    for axis in (2, 3):
        size = blurred.shape[axis]
        index = torch.arange(-radius, size + radius, device=maps.device) % (2 * size)
        index = torch.where(index < size, index, 2 * size - 1 - index)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        blurred = functional.conv2d(blurred.index_select(axis, index), kernel.view(shape))
    return blurred[:, 0]


def largest_around(maps: Float[Tensor, "b h w"], size: int) -> Float[Tensor, "b h w"]:
    """Compute the largest value in the square of ``size`` pixels (odd) around each pixel: along rows, then columns."""
    across = functional.max_pool2d(maps[:, None], (1, size), 1, (0, size // 2))
    return functional.max_pool2d(across, (size, 1), 1, (size // 2, 0))[:, 0]


def tolerance_shifts(tolerance: float) -> list[tuple[float, float]]:
    """Return the shifts ``(dy, dx)`` of up to ``tolerance`` pixels in each axis, in steps of at most one pixel.

    Args:
        tolerance: largest shift in pixels; 0 for none.
    """
    if tolerance <= 0:
        return [(0.0, 0.0)]
    count = math.ceil(tolerance)
    steps = [tolerance * step / count for step in range(-count, count + 1)]
    return list(itertools.product(steps, steps))


def shifted(
    features: Float[Tensor, "b c h w"], shifts: Sequence[tuple[float, float]]
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Shift feature maps, once for each shift; bilinear between cells, with a repeated border.

    Args:
        features: maps to shift: cell (y, x) of a result is their cell (y + dy, x + dx).
        shifts: ``(dy, dx)`` in cells.
    """
    reach = math.ceil(max((abs(amount) for shift in shifts for amount in shift), default=0))
    widened = features
    for axis in (2, 3):
        size = features.shape[axis]
        cells = torch.arange(-reach, size + reach, device=features.device).clamp(0, size - 1)
        widened = widened.index_select(axis, cells)
    for shift in shifts:
        result = widened
        for axis, amount in zip((2, 3), shift, strict=True):
            size, whole = features.shape[axis], math.floor(amount)
            near = result.narrow(axis, reach + whole, size)
            if amount == whole:
                result = near
            else:
                result = torch.lerp(near, result.narrow(axis, reach + whole + 1, size), amount - whole)
        yield result


def tolerant_distance(
    query: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], shifts: list[tuple[float, float]]
) -> Float[Tensor, "b h w"]:
    r"""Compute the distance of feature maps, with a tolerance to small shifts in both directions.

    .. math:: d(p) = \max(\min_s |q(p) - r(p + s)|, \min_s |r(p) - q(p + s)|)

    The first term is large where the query shows something that the reference does not show nearby, the second where
    the reference shows something that the query does not.

    Args:
        query: features of the query.
        reference: features of the reference.
        shifts: ``(dy, dx)`` in cells.
    """
    nearest_reference = nearest_query = None
    for moved_query, moved_reference in zip(shifted(query, shifts), shifted(reference, shifts), strict=True):
        to_reference = squared_difference(query, moved_reference)
        to_query = squared_difference(reference, moved_query)
        nearest_reference = (
            to_reference if nearest_reference is None else torch.minimum(nearest_reference, to_reference)
        )
        nearest_query = to_query if nearest_query is None else torch.minimum(nearest_query, to_query)
    if nearest_reference is None or nearest_query is None:
        msg = "tolerant_distance needs at least one shift, got none; give [(0.0, 0.0)] for no tolerance."
        raise ValueError(msg)
    return torch.maximum(nearest_reference, nearest_query).sqrt()


def top_mean(maps: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"], fraction: float) -> Float[Tensor, " b"]:
    """Average the largest values of each map, as many as ``fraction`` of the object's pixels, at least one.

    The largest values are taken from the whole map: an added part lies outside the rendering of the object. If the
    number of values is fractional, the last value gets the fraction as its weight. So one more pixel on the outline
    hardly changes the mean.

    Args:
        maps: anomaly maps.
        alpha: opacity of the object; where it is empty, the whole image counts as its area.
        fraction: number of values as a fraction of the object's pixels, in (0, 1].
    """
    pixels = maps.shape[1] * maps.shape[2]
    area = (alpha > 0.5).flatten(1).sum(1)
    area = torch.where(area > 0, area, pixels)
    # the count for an object that fills the image, so that the shape does not depend on the data
    most = max(1, round(pixels * fraction))
    counts = (area * fraction).clamp(1, most).to(maps)
    values = maps.flatten(1).topk(most).values
    weights = (counts[:, None] - torch.arange(most, device=maps.device)).clamp(0, 1)
    return (values * weights).sum(1) / counts
