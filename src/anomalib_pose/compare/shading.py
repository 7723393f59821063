# SPDX-License-Identifier: Apache-2.0
"""Renderings in the light of photographs."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.light import MIN_PIXELS, biweight
from anomalib_pose.render.spherical_harmonics import C0, sh_basis

_DEGREE = 2  # holds 98 % of what distant light does to matt surfaces (Ramamoorthi and Hanrahan 2001)
_SMOOTHED = 5  # pixels along a side that a point is the mean of before slopes are taken
_STEPS = 8
_RIDGE = 1e-5
_MOST_PIXELS = 20_000
_SHADES = (0.1, 4.0)


def surface_normals(points: Float[Tensor, "h w 3"], alpha: Float[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Unit normals of the surface that pixels show, into the surface; 0 where there is none.

    Args:
        points: of the surface, any frame.
        alpha: opacity of the object.
    """
    opaque = (alpha > 0.5).to(points)[None]
    weighted = torch.cat([points.permute(2, 0, 1) * opaque, opaque])
    means = functional.avg_pool2d(weighted[None], _SMOOTHED, 1, _SMOOTHED // 2)[0]
    smooth = means[:3] / means[3].clamp(min=1e-6)
    right = functional.pad(smooth[:, :, 2:] - smooth[:, :, :-2], (1, 1))
    down = functional.pad(smooth[:, 2:] - smooth[:, :-2], (0, 0, 1, 1))
    return functional.normalize(torch.linalg.cross(right, down, dim=0), dim=0).permute(1, 2, 0) * opaque[0, ..., None]


@torch.no_grad()
def relit(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b h w"],
    points: Float[Tensor, "b h w 3"],
) -> Float[Tensor, "b 3 h w"]:
    """Renderings as they would look in the light of their queries, were the object matt.

    Each channel is multiplied by a spherical harmonic of the surface's normal that is fitted to the object's pixels by
    least squares, reweighted so that defects and shadows hardly count (Tukey's biweight, scale from the median absolute
    residual). An object of a few pixels is left as it is.

    Args:
        query: photographs, RGB in [0, 1].
        reference: their renderings, RGB in [0, 1].
        alpha: opacity of the object.
        points: of the surface that pixels show, any frame.
    """
    shades = _shades(query, reference, alpha, points)
    return torch.lerp(reference, (reference * shades).clamp(0, 1), alpha[:, None])


@torch.no_grad()
def unlit(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b h w"],
    points: Float[Tensor, "b h w 3"],
) -> Float[Tensor, "b 3 h w"]:
    """Photographs as they would look in the light of their renderings; the inverse of ``relit``.

    Args:
        query: see ``relit``.
        reference: see ``relit``.
        alpha: see ``relit``.
        points: see ``relit``.
    """
    shades = _shades(query, reference, alpha, points)
    return torch.lerp(query, (query / shades).clamp(0, 1), alpha[:, None])


def _shades(*images: Tensor) -> Float[Tensor, "b 3 h w"]:
    """What renderings are multiplied by to look like their photographs; takes what ``relit`` takes."""
    return torch.stack([_shade(*parts) for parts in zip(*images, strict=True)])


def _shade(query: Tensor, reference: Tensor, alpha: Tensor, points: Tensor) -> Float[Tensor, "3 h w"]:
    """What a rendering is multiplied by to look like the photograph; 1 where the object has a few pixels only."""
    inside = alpha > 0.9
    if int(inside.sum()) < MIN_PIXELS:
        return torch.ones_like(reference)
    basis = sh_basis(_DEGREE, surface_normals(points, alpha)) / C0
    every = 1 + int(inside.sum()) // _MOST_PIXELS
    factors = _factors(*(part[..., inside][..., ::every] for part in (query, reference, basis.permute(2, 0, 1))))
    return (basis @ factors.T).permute(2, 0, 1).clamp(*_SHADES)


def _factors(
    query: Float[Tensor, "3 n"], reference: Float[Tensor, "3 n"], basis: Float[Tensor, "k n"]
) -> Float[Tensor, "3 k"]:
    """Coefficients of each channel; where pixels tell nothing, those of the light as it was."""
    columns = reference[:, None] * basis
    weight = torch.ones_like(query[0])
    ridge = _RIDGE * query.shape[1] * torch.eye(len(basis)).to(query)
    factors = ridge.new_zeros(3, len(basis))
    for _ in range(_STEPS):
        weighted = columns * weight
        products = weighted @ columns.transpose(1, 2) + ridge
        factors = torch.linalg.solve(products, (weighted @ query[:, :, None])[..., 0] + ridge[0])
        residual = ((factors[:, None] @ columns)[:, 0] - query).abs().sum(0)
        weight = biweight(residual)
    return factors
