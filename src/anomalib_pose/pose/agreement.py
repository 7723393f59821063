# SPDX-License-Identifier: Apache-2.0
"""How well a query and a rendering agree at a pose, in whatever light."""

import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from anomalib_pose.pose.types import Query
from anomalib_pose.scene import Scene

OBJECT_ALPHA = 0.5
"""Opacity above which a pixel belongs to the object."""

_WINDOW = 0.055  # side of the neighborhood, as a part of the image's longer side
_NOISE = 1e-5  # variance below which a neighborhood counts as flat
_FULL_TEXTURE = 0.05  # standard deviation above which a neighborhood counts no more than others


def box_means(values: Float[Tensor, "c h w"], radius: int) -> Float[Tensor, "c h w"]:
    """Means over squares of 2 ``radius`` + 1 pixels, with zeros around the image.

    Differences of running sums, in double precision: the time does not depend on the radius.

    Args:
        values: of each pixel.
        radius: in pixels.
    """
    side, sums = 2 * radius + 1, values.to(torch.float64)
    for dim, padding in ((1, (0, 0, radius + 1, radius)), (2, (radius + 1, radius))):
        sums = functional.pad(sums, padding).cumsum(dim)
        count = sums.shape[dim] - side
        sums = sums.narrow(dim, side, count) - sums.narrow(dim, 0, count)
    return (sums / side**2).to(values)


@torch.no_grad()
def measure_agreement(scene: Scene, query: Query, camera_to_world: Float[Tensor, "4 4"]) -> tuple[float, float]:
    """Residual of the structure and overlap (intersection over union) of the silhouettes at a pose.

    Where the query's foreground is unknown, the overlap is 1 if the object is in the image at all. Holes of silhouettes
    are filled: a mask that was found by a white background says nothing of the background that is seen through a hole.

    Args:
        scene: the fitted object.
        query: the image.
        camera_to_world: the pose.
    """
    output = scene.render(query.camera_at(camera_to_world), query.background)
    drawn = output.alpha > OBJECT_ALPHA
    if query.foreground is None:
        shared, overlap = drawn, 1.0 if bool(drawn.any()) else 0.0
    else:
        object_pixels = query.foreground > OBJECT_ALPHA
        shared = drawn & object_pixels
        ours, theirs = _filled(drawn), _filled(object_pixels)
        overlap = float((ours & theirs).sum() / (ours | theirs).sum().clamp_min(1))
    return structure_residual(query.image, output.rgb.permute(2, 0, 1), shared), overlap


def _filled(mask: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    return torch.from_numpy(ndimage.binary_fill_holes(mask.cpu().numpy()))


def structure_residual(
    image: Float[Tensor, "3 h w"], rendering: Float[Tensor, "3 h w"], region: Bool[Tensor, "h w"]
) -> float:
    """One minus the correlation of two images in small neighborhoods, averaged by the rendering's texture.

    Brightness and contrast of each neighborhood drop out, and with them most of what another light, an exposure or a
    shadow changes. A defect spoils the neighborhoods that it lies in, a wrong pose nearly all of them.

    Args:
        image: the query, RGB in [0, 1].
        rendering: what it is compared with, RGB in [0, 1].
        region: pixels that take part.

    Returns:
        0 where the structures are the same, about 1 where they have nothing in common, at most 2; 1 without a region.
    """
    if not bool(region.any()):
        return 1.0
    radius = max(2, round(_WINDOW / 2 * max(image.shape[-2:])))
    rows, columns = (torch.nonzero(region.any(side))[[0, -1], 0].tolist() for side in (1, 0))
    box = (..., slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1))  # nothing outside takes part
    image, rendering, mask = image[box], rendering[box], region[box].to(image)[None]

    share = box_means(mask, radius).clamp(min=1e-6)
    ours, theirs = (part - box_means(part * mask, radius) / share for part in (image, rendering))
    ours, theirs = ours * mask, theirs * mask
    products = torch.stack([(ours * ours).sum(0), (theirs * theirs).sum(0), (ours * theirs).sum(0)])
    own, other, both = box_means(products, radius) / share
    correlation = (both + _NOISE) / ((own + _NOISE) * (other + _NOISE)).sqrt()
    weight = (other + _NOISE).sqrt().clamp(max=_FULL_TEXTURE) * mask[0]
    return float(1 - (weight * correlation).sum() / weight.sum())
