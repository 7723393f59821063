# SPDX-License-Identifier: Apache-2.0
"""Differences of feature maps, and what is done to anomaly maps."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def squared_difference(query: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Squared difference, summed over channels."""
    return (query - reference).square().sum(1)


def upsample(maps: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b height width"]:
    """Bilinear resize of maps to ``(height, width)``; corners are not aligned."""
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def gaussian_blur(maps: Float[Tensor, "b h w"], sigma: float, truncate: float = 4.0) -> Float[Tensor, "b h w"]:
    """Gaussian filter with the border of ``scipy.ndimage.gaussian_filter``: mirrored, edge pixel repeated.

    Args:
        maps: images (B, H, W).
        sigma: standard deviation in pixels; 0 returns the maps unchanged.
        truncate: where the kernel ends, in standard deviations.
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
    """Largest value in the square of ``size`` pixels (odd) around each pixel: along rows, then along columns."""
    across = functional.max_pool2d(maps[:, None], (1, size), 1, (0, size // 2))
    return functional.max_pool2d(across, (size, 1), 1, (size // 2, 0))[:, 0]


def tolerance_shifts(tolerance: float) -> list[tuple[float, float]]:
    """Shifts ``(dy, dx)`` that cover misfits of up to ``tolerance`` pixels in each axis, in steps of at most one pixel.

    Args:
        tolerance: largest misfit in pixels; 0 for none.
    """
    if tolerance <= 0:
        return [(0.0, 0.0)]
    count = math.ceil(tolerance)
    steps = [tolerance * step / count for step in range(-count, count + 1)]
    return list(itertools.product(steps, steps))


def shifted(
    features: Float[Tensor, "b c h w"], shifts: Sequence[tuple[float, float]]
) -> Iterator[Float[Tensor, "b c h w"]]:
    """``features`` read some cells further for each shift; bilinear between cells, the border is repeated outwards.

    Args:
        features: what is read.
        shifts: ``(dy, dx)`` in cells.
    """
    reach = math.ceil(max((abs(amount) for shift in shifts for amount in shift), default=0))
    widened = features
    for axis in (2, 3):
        size = features.shape[axis]
        cells = torch.arange(-reach, size + reach, device=features.device).clamp(0, size - 1)
        widened = widened.index_select(axis, cells)
    for shift in shifts:
        read = widened
        for axis, amount in zip((2, 3), shift, strict=True):
            size, whole = features.shape[axis], math.floor(amount)
            near = read.narrow(axis, reach + whole, size)
            if amount == whole:
                read = near
            else:
                read = torch.lerp(near, read.narrow(axis, reach + whole + 1, size), amount - whole)
        yield read


def tolerant_distance(
    query: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], shifts: list[tuple[float, float]]
) -> Float[Tensor, "b h w"]:
    r"""Distance of feature maps that forgives small shifts in both directions.

    .. math:: d(p) = \max(\min_s |q(p) - r(p + s)|, \min_s |r(p) - q(p + s)|)

    The first term finds what the query has and the reference has not nearby, the second what it lacks.

    Args:
        query: features of the photograph.
        reference: features of its rendering.
        shifts: ``(dy, dx)`` in cells.
    """
    forth = back = None
    for moved_query, moved_reference in zip(shifted(query, shifts), shifted(reference, shifts), strict=True):
        to_reference = squared_difference(query, moved_reference)
        to_query = squared_difference(reference, moved_query)
        forth = to_reference if forth is None else torch.minimum(forth, to_reference)
        back = to_query if back is None else torch.minimum(back, to_query)
    if forth is None or back is None:
        msg = "Expected at least one shift, found none; give [(0.0, 0.0)] for no tolerance."
        raise ValueError(msg)
    return torch.maximum(forth, back).sqrt()


def top_mean(maps: Float[Tensor, "b h w"], alpha: Float[Tensor, "b h w"], fraction: float) -> Float[Tensor, " b"]:
    """Mean of the largest values of each map, as many as ``fraction`` of the object's pixels, at least one.

    They are searched in the whole map: what was added to an object lies outside its rendering. Where that is no whole
    number, the last one has a part of the weight: a pixel more on the outline changes next to nothing.

    Args:
        maps: anomaly maps.
        alpha: opacity of the object; where it is empty the whole image counts as its area.
        fraction: in (0, 1].
    """
    pixels = maps.shape[1] * maps.shape[2]
    area = (alpha > 0.5).flatten(1).sum(1)
    area = torch.where(area > 0, area, pixels)
    # as many as a full image could ask for, so that the shape does not depend on the data
    most = max(1, round(pixels * fraction))
    counts = (area * fraction).clamp(1, most).to(maps)
    values = maps.flatten(1).topk(most).values
    taken = (counts[:, None] - torch.arange(most, device=maps.device)).clamp(0, 1)
    return (values * taken).sum(1) / counts
