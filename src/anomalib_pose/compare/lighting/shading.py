# SPDX-License-Identifier: Apache-2.0
"""Relighting: references in the light of their queries, and queries in the light of their references."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from anomalib_pose.compare.lighting.robust_weights import MIN_PIXELS, biweight
from anomalib_pose.render.spherical_harmonics import C0, sh_basis

DEGREE = 2  # holds 98 % of the energy of distant light on a matt surface (Ramamoorthi and Hanrahan 2001)
SMOOTHED = 5  # side in pixels of the square that points are averaged over before slopes are computed
OPAQUE = (0.4, 0.6)  # the weight of a point rises from 0 to 1 between them; at a single limit, rounding would decide
STEPS = 8
RIDGE = 1e-5
_INDEPENDENT = 1e-4
INSIDE = 0.9  # opacity above which a pixel is used to estimate the light
_MOST_PIXELS = 20_000
SHADES = (0.1, 4.0)  # limits of the factor from reference to query


def surface_normals(points: Float[Tensor, "b h w 3"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w 3"]:
    """Compute the normal, into the surface, of the surface point of each pixel.

    Its length is 1 on the object, 0 beside it, and in between at the outline.

    Args:
        points: surface points, any frame.
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
    """Relight references to match their queries, as if the object were matt.

    Each channel is multiplied by spherical harmonics of the surface normal. Their coefficients are fitted to the
    object's pixels by least squares, with Tukey's biweights (scale from the median absolute residual), so that defects
    and shadows hardly count. References of an object of less than 50 pixels stay as they are.

    Args:
        query: queries, RGB in [0, 1].
        reference: references of the queries, RGB in [0, 1].
        alpha: opacity of the object.
        points: surface point of each pixel, any frame.
    """
    shading = _shadings(query, reference, alpha, points)
    return torch.lerp(reference, (reference * shading).clamp(0, 1), alpha[:, None])


@torch.no_grad()
def relight_query(
    query: Float[Tensor, "b 3 h w"],
    reference: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b h w"],
    points: Float[Tensor, "b h w 3"],
) -> Float[Tensor, "b 3 h w"]:
    """Relight queries to match their references; the inverse of ``relight_reference``.

    Args:
        query: see ``relight_reference``.
        reference: see ``relight_reference``.
        alpha: see ``relight_reference``.
        points: see ``relight_reference``.
    """
    shading = _shadings(query, reference, alpha, points)
    return torch.lerp(query, (query / shading).clamp(0, 1), alpha[:, None])


def _shadings(*images: Tensor) -> Float[Tensor, "b 3 h w"]:
    """Compute the factors from references to queries; takes the arguments of ``relight_reference``."""
    return torch.stack([_shading(*parts) for parts in zip(*images, strict=True)])


def _shading(query: Tensor, reference: Tensor, alpha: Tensor, points: Tensor) -> Float[Tensor, "3 h w"]:
    """Compute the factors from one reference to its query; 1 if the object has less than 50 pixels."""
    inside = alpha > INSIDE
    if int(inside.sum()) < MIN_PIXELS:
        return torch.ones_like(reference)
    basis = light_basis(points[None], alpha[None])[0].unflatten(1, alpha.shape)
    step = 1 + int(inside.sum()) // _MOST_PIXELS
    coefficients = _light_coefficients(*(part[..., inside][..., ::step] for part in (query, reference, basis)))
    return torch.tensordot(coefficients, basis, 1).clamp(*SHADES)


def light_basis(points: Float[Tensor, "b h w 3"], alpha: Float[Tensor, "b h w"]) -> Float[Tensor, "b k n"]:
    """Compute functions of the surface normal whose weighted sum describes any distant light; the first is 1.

    The functions are spherical harmonics, made orthogonal over the object's pixels one after the other, with a mean
    square of 1. On the normals that one camera sees, spherical harmonics are nearly dependent: a fit of their weights
    would need more digits than floating-point numbers have. A function that nearly depends on the earlier ones stays
    small. No branch depends on the data.

    Args:
        points: surface point of each pixel, any frame.
        alpha: opacity of the object.
    """
    functions = sh_basis(DEGREE, surface_normals(points, alpha)).flatten(1, 2).transpose(1, 2) / C0
    inside = (alpha > INSIDE).to(functions).flatten(1)[:, None]
    weights = inside / inside.sum(2, keepdim=True).clamp(min=1)
    basis = functions[:, :1]
    for index in range(1, functions.shape[1]):
        new = functions[:, index : index + 1]
        new = new - (new * weights) @ basis.transpose(1, 2) @ basis
        basis = torch.cat([basis, new / ((new.square() * weights).sum(2, keepdim=True) + _INDEPENDENT).sqrt()], 1)
    return basis


def _light_coefficients(
    query: Float[Tensor, "3 n"], reference: Float[Tensor, "3 n"], basis: Float[Tensor, "k n"]
) -> Float[Tensor, "3 k"]:
    """Fit the coefficients of each channel; the ridge prefers unchanged light where the pixels do not decide."""
    columns = reference[:, None] * basis
    weight = torch.ones_like(query[0])
    ridge = RIDGE * query.shape[1] * torch.eye(len(basis)).to(query)
    coefficients = ridge.new_zeros(3, len(basis))
    for _ in range(STEPS):
        weighted = columns * weight
        products = weighted @ columns.transpose(1, 2) + ridge
        coefficients = torch.linalg.solve(products, (weighted @ query[:, :, None])[..., 0] + ridge[0])
        residual = ((coefficients[:, None] @ columns)[:, 0] - query).abs().sum(0)
        weight = biweight(residual)
    return coefficients
