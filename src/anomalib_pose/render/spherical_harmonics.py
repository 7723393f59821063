# SPDX-License-Identifier: Apache-2.0
"""View-dependent colors of Gaussians: real spherical harmonics up to degree 3."""

import torch
from jaxtyping import Float
from torch import Tensor

C0 = 0.28209479177387814
"""Constant basis function, 1 / (2 sqrt(pi)): a gray of value ``v`` has the coefficient ``(v - 0.5) / C0``."""

C1 = 0.4886025119029199
C2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
C3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)
"""Factors of the basis functions of degree 1 (``C1``), 2 (``C2``) and 3 (``C3``)."""


def sh_basis(degree: int, directions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch k"]:
    """Evaluate the (degree + 1)² basis functions.

    Order and signs are those of gsplat and of the files of 3D Gaussian splatting: l ascending, m from -l to l, with the
    Condon-Shortley phase, that is (1, -y, z, -x, ...).

    Args:
        degree: 0..3.
        directions: unit vectors (..., 3).

    Raises:
        ValueError: if the degree is not 0..3.
    """
    if degree not in range(4):
        msg = f"The degree of spherical harmonics should be 0..3, got {degree}."
        raise ValueError(msg)
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, C0)]
    if degree >= 1:
        basis += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        basis += [C2[0] * x * y, -C2[0] * y * z, C2[1] * (2 * zz - xx - yy), -C2[0] * x * z, C2[2] * (xx - yy)]
    if degree >= 3:
        basis += [
            -C3[0] * y * (3 * xx - yy),
            C3[1] * x * y * z,
            -C3[2] * y * (4 * zz - xx - yy),
            C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -C3[2] * x * (4 * zz - xx - yy),
            C3[4] * z * (xx - yy),
            -C3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(basis, -1)


def sh_to_rgb(
    degree: int,
    coefficients: Float[Tensor, "n k 3"],
    means: Float[Tensor, "n 3"],
    center: Float[Tensor, "3"],
) -> Float[Tensor, "n 3"]:
    """Evaluate the color of each Gaussian for a camera: ``max(0.5 + sum of coefficients times basis, 0)``.

    Differentiable in all tensors, also through the direction from the camera to the Gaussian.

    Args:
        degree: 0..3; coefficients of higher degrees are not used.
        coefficients: (N, K, 3) with K >= (degree + 1)².
        means: centers of the Gaussians (N, 3), world frame.
        center: optical center of the camera (3,), world frame.

    Raises:
        ValueError: if the degree is not 0..3.
    """
    if degree == 0:  # independent of the direction
        return (0.5 + C0 * coefficients[:, 0]).clamp_min(0)
    directions = torch.nn.functional.normalize(means - center, dim=-1)
    basis = sh_basis(degree, directions)
    return (0.5 + torch.einsum("nk,nkc->nc", basis, coefficients[:, : basis.shape[-1]])).clamp_min(0)
