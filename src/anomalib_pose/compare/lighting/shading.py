# SPDX-License-Identifier: Apache-2.0
"""Renderings in the light of photographs."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.lighting.robust_weights import MIN_PIXELS, biweight
from anomalib_pose.render.spherical_harmonics import C0, sh_basis

DEGREE = 2  # holds 98 % of what distant light does to matt surfaces (Ramamoorthi and Hanrahan 2001)
SMOOTHED = 5  # pixels along a side that a point is the mean of before slopes are taken
OPAQUE = (0.4, 0.6)  # opacity where points begin to count and count in full: at a limit, rounding would decide
STEPS = 8
RIDGE = 1e-5
_INDEPENDENT = 1e-4
INSIDE = 0.9  # opacity of pixels that tell of the light
_MOST_PIXELS = 20_000
SHADES = (0.1, 4.0)


def surface_normals(points: Float[Tensor, "b h w 3"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w 3"]:
    """Normals of the surface that pixels show, into it: of length 1, 0 where there is none, in between at its rim.

    Args:
        points: of the surface, any frame.
        alpha: opacity of the object.
    """
    opaque = ((alpha - OPAQUE[0]) / (OPAQUE[1] - OPAQUE[0])).clamp(0, 1).to(points)[:, None]
    weighted = torch.cat([points.permute(0, 3, 1, 2) * opaque, opaque], 1)
    means = functional.avg_pool2d(weighted, SMOOTHED, 1, SMOOTHED // 2)
    smooth = means[:, :3] / means[:, 3:].clamp(min=1e-6)
    rx, ry, rz = functional.pad(smooth[:, :, :, 2:] - smooth[:, :, :, :-2], (1, 1)).unbind(1)
    dx, dy, dz = functional.pad(smooth[:, :, 2:] - smooth[:, :, :-2], (0, 0, 1, 1)).unbind(1)
    normals = torch.stack([ry * dz - rz * dy, rz * dx - rx * dz, rx * dy - ry * dx], 3)
    length = normals.square().sum(3, keepdim=True).sqrt().clamp(min=1e-12)
    return normals / length * opaque[:, 0, :, :, None]


@torch.no_grad()
def relight_reference(
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
def relight_query(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b h w"],
    points: Float[Tensor, "b h w 3"],
) -> Float[Tensor, "b 3 h w"]:
    """Photographs as they would look in the light of their renderings; the inverse of ``relight_reference``.

    Args:
        query: see ``relight_reference``.
        reference: see ``relight_reference``.
        alpha: see ``relight_reference``.
        points: see ``relight_reference``.
    """
    shades = _shades(query, reference, alpha, points)
    return torch.lerp(query, (query / shades).clamp(0, 1), alpha[:, None])


def _shades(*images: Tensor) -> Float[Tensor, "b 3 h w"]:
    """What renderings are multiplied by to look like their photographs; takes what ``relight_reference`` takes."""
    return torch.stack([_shade(*parts) for parts in zip(*images, strict=True)])


def _shade(query: Tensor, reference: Tensor, alpha: Tensor, points: Tensor) -> Float[Tensor, "3 h w"]:
    """What a rendering is multiplied by to look like the photograph; 1 where the object has a few pixels only."""
    inside = alpha > INSIDE
    if int(inside.sum()) < MIN_PIXELS:
        return torch.ones_like(reference)
    basis = light_basis(points[None], alpha[None])[0].unflatten(1, alpha.shape)
    every = 1 + int(inside.sum()) // _MOST_PIXELS
    factors = _factors(*(part[..., inside][..., ::every] for part in (query, reference, basis)))
    return torch.tensordot(factors, basis, 1).clamp(*SHADES)


def light_basis(points: Float[Tensor, "b h w 3"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, "b k n"]:
    """Functions of the surface's normal that distant light of any kind is a sum of; the first is 1.

    Spherical harmonics, made orthogonal over the object's pixels one after the other, with a mean square of 1: of what
    a camera sees they are nearly dependent, and their sums would need more digits than there are. What hardly differs
    from those before it stays small. There is no branch that depends on the data.

    Args:
        points: of the surface that pixels show, any frame.
        alpha: opacity of the object.
    """
    functions = sh_basis(DEGREE, surface_normals(points, alpha)).flatten(1, 2).transpose(1, 2) / C0
    inside = (alpha > INSIDE).to(functions).flatten(1)[:, None]
    share = inside / inside.sum(2, keepdim=True).clamp(min=1)
    found = functions[:, :1]
    for index in range(1, functions.shape[1]):
        new = functions[:, index : index + 1]
        new = new - (new * share) @ found.transpose(1, 2) @ found
        found = torch.cat([found, new / ((new.square() * share).sum(2, keepdim=True) + _INDEPENDENT).sqrt()], 1)
    return found


def _factors(
    query: Float[Tensor, "3 n"], reference: Float[Tensor, "3 n"], basis: Float[Tensor, "k n"]
) -> Float[Tensor, "3 k"]:
    """Coefficients of each channel; where pixels tell nothing, those of the light as it was."""
    columns = reference[:, None] * basis
    weight = torch.ones_like(query[0])
    ridge = RIDGE * query.shape[1] * torch.eye(len(basis)).to(query)
    factors = ridge.new_zeros(3, len(basis))
    for _ in range(STEPS):
        weighted = columns * weight
        products = weighted @ columns.transpose(1, 2) + ridge
        factors = torch.linalg.solve(products, (weighted @ query[:, :, None])[..., 0] + ridge[0])
        residual = ((factors[:, None] @ columns)[:, 0] - query).abs().sum(0)
        weight = biweight(residual)
    return factors
