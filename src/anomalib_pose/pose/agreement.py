# SPDX-License-Identifier: Apache-2.0
"""Agreement of a query and a rendering: light-tolerant structural residual, and overlap of the silhouettes."""

import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from anomalib_pose.pose.types import Query
from anomalib_pose.scene import Scene

OBJECT_ALPHA = 0.5
"""Opacity above which a pixel belongs to the object."""

_WINDOW = 0.055  # side of a neighborhood, as a fraction of the image's longer side
_NOISE = 1e-5  # variance below which a neighborhood counts as flat
_FULL_TEXTURE = 0.05  # standard deviation at and above which a neighborhood has the full weight
_MIN_NEIGHBORHOODS = 4  # area of a rendered object, in neighborhoods, below which any photograph agrees with it


def box_means(values: Float[Tensor, "c h w"], radius: int) -> Float[Tensor, "c h w"]:
    """Return means over squares of 2 ``radius`` + 1 pixels, with zeros around the image.

    The means are differences of running sums in double precision, so the time does not depend on the radius.

    Args:
        values: one value per channel and pixel.
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
    """Compare a query with the rendering at a pose.

    Args:
        scene: the fitted object.
        query: the image.
        camera_to_world: the pose (4, 4).

    Returns:
        ``structure_residual``, and the intersection over union of the two silhouettes. Silhouettes are compared without
        their holes: a mask from a white background does not reveal whether the background is visible through a hole. If
        the query's foreground is unknown, the overlap is 1 if the rendering contains the object. It is smaller if the
        object covers less than a few neighborhoods, and 0 without the object.
    """
    rendering = scene.render(query.camera_at(camera_to_world), query.background)
    rendered_mask = rendering.alpha > OBJECT_ALPHA
    if query.foreground is None:
        area = (2 * _radius(query.image) + 1) ** 2
        common_mask, overlap = rendered_mask, min(1.0, float(rendered_mask.sum()) / (_MIN_NEIGHBORHOODS * area))
    else:
        query_mask = query.foreground > OBJECT_ALPHA
        common_mask = rendered_mask & query_mask
        rendered_silhouette, query_silhouette = _fill_holes(rendered_mask), _fill_holes(query_mask)
        union = (rendered_silhouette | query_silhouette).sum().clamp_min(1)
        overlap = float((rendered_silhouette & query_silhouette).sum() / union)
    return structure_residual(query.image, rendering.rgb.permute(2, 0, 1), common_mask), overlap


def _radius(image: Float[Tensor, "3 h w"]) -> int:
    """Return the radius of a neighborhood in pixels."""
    return max(2, round(_WINDOW / 2 * max(image.shape[-2:])))


def _fill_holes(mask: Bool[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    return torch.from_numpy(ndimage.binary_fill_holes(mask.cpu().numpy()))


def structure_residual(
    image: Float[Tensor, "3 h w"], rendering: Float[Tensor, "3 h w"], region: Bool[Tensor, "h w"]
) -> float:
    """Return one minus the correlation of two images in small neighborhoods, weighted by the rendering's texture.

    The correlation ignores the brightness and the contrast of each neighborhood. It therefore ignores most changes of
    light, exposure or shadow. A defect raises the residual only in the neighborhoods that contain it. A wrong
    pose raises it in nearly all neighborhoods.

    Args:
        image: the query, RGB in [0, 1].
        rendering: its rendered counterpart, RGB in [0, 1].
        region: pixels that take part.

    Returns:
        0 for equal structure, about 1 for unrelated structure, at most 2; 1 if the region is empty.
    """
    if not bool(region.any()):
        return 1.0
    radius = _radius(image)
    rows, columns = (torch.nonzero(region.any(side))[[0, -1], 0].tolist() for side in (1, 0))
    box = (..., slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1))  # pixels outside do not take part
    image, rendering, mask = image[box], rendering[box], region[box].to(image)[None]

    coverage = box_means(mask, radius).clamp(min=1e-6)
    image_detail, rendering_detail = (
        (values - box_means(values * mask, radius) / coverage) * mask for values in (image, rendering)
    )
    products = torch.stack(
        [
            (image_detail * image_detail).sum(0),
            (rendering_detail * rendering_detail).sum(0),
            (image_detail * rendering_detail).sum(0),
        ]
    )
    image_variance, rendering_variance, covariance = box_means(products, radius) / coverage
    correlation = (covariance + _NOISE) / ((image_variance + _NOISE) * (rendering_variance + _NOISE)).sqrt()
    weight = (rendering_variance + _NOISE).sqrt().clamp(max=_FULL_TEXTURE) * mask[0]
    return float(1 - (weight * correlation).sum() / weight.sum())
