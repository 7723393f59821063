# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of the projection of Gaussians to the image plane and of its gradient (EWA, Zwicker et al. 2002).

With view rotation ``V``, Gaussian axes ``R``, standard deviations ``s`` and the Jacobian ``J`` of the pinhole
projection, ``U = J V R diag(s)`` and the covariance on the image is ``U Uᵀ + 0.3 I``. Arrays are float32 and
C-contiguous.

A splat is a projected Gaussian. A visible Gaussian fills two rows:

- ``splats`` (N, 10): center ``u, v``, conic ``A, B, C`` (the inverse covariance), log opacity, RGB, z.
- ``outlines`` (N, 4): the ellipse on which the opacity is 1/255. With the covariance ((a, b), (b, c)) the columns are
  b / c, sqrt(det) / c, the half height, and the offset in v of the rightmost point from the center.
"""

import math
from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import kernel

TILE = 8  # side of an image tile, in pixels
LOG_ALPHA_MIN = np.float32(math.log(1 / 255))
CAMERA_CHUNK = 1024  # number of Gaussians in one partial sum of the camera's gradient
PARTIALS = 10  # gradients of a splat, in the order that `project_backward` documents

_ALPHA_MIN = np.float32(1 / 255)
_NEAR = np.float32(0.01)
_BLUR = np.float32(0.3)
_MARGIN = np.float32(0.3)
_MAX_VARIANCE = np.float32(1e18)  # px²; float32 overflows in later steps above it
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TWO = np.float32(2)
_ZERO = np.float32(0)


@kernel()
@no_type_check
def _rotation(quat, out):  # noqa: ANN001, ANN202
    """Write the rotation matrix (3, 3) of a quaternion wxyz; return the inverse of its length."""
    inverse = _ONE / math.sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3])
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
    out[0, 0] = _ONE - _TWO * (y * y + z * z)
    out[0, 1] = _TWO * (x * y - w * z)
    out[0, 2] = _TWO * (x * z + w * y)
    out[1, 0] = _TWO * (x * y + w * z)
    out[1, 1] = _ONE - _TWO * (x * x + z * z)
    out[1, 2] = _TWO * (y * z - w * x)
    out[2, 0] = _TWO * (x * z - w * y)
    out[2, 1] = _TWO * (y * z + w * x)
    out[2, 2] = _ONE - _TWO * (x * x + y * y)
    return inverse


@kernel()
@no_type_check
def _clamped_slope(slope, focal, center, size):  # noqa: ANN001, ANN202
    """Clamp x / z to 1.3 times the field of view, where the linearization holds; return it and True if unclamped."""
    margin = _MARGIN * _HALF * size / focal
    clamped = min((size - center) / focal + margin, max(-(center / focal + margin), slope))
    return clamped, clamped == slope


@kernel()
@no_type_check
def _to_camera(mean, view):  # noqa: ANN001, ANN202
    """Transform a point (3,) from the world to the camera frame."""
    x = view[0, 0] * mean[0] + view[0, 1] * mean[1] + view[0, 2] * mean[2] + view[0, 3]
    y = view[1, 0] * mean[0] + view[1, 1] * mean[1] + view[1, 2] * mean[2] + view[1, 3]
    z = view[2, 0] * mean[0] + view[2, 1] * mean[1] + view[2, 2] * mean[2] + view[2, 3]
    return x, y, z


@kernel()
@no_type_check
def _axes_in_camera(view, rotation, scale, axes):  # noqa: ANN001, ANN202
    """Write V R diag(s), the axes (3, 3) in the camera frame."""
    for i in range(3):
        for j in range(3):
            total = view[i, 0] * rotation[0, j] + view[i, 1] * rotation[1, j] + view[i, 2] * rotation[2, j]
            axes[i, j] = total * scale[j]


@kernel()
@no_type_check
def _axes_on_image(axes, j00, j02, j11, j12, out):  # noqa: ANN001, ANN202
    """Write U (2, 3); return the entries a, b, c of the blurred covariance."""
    a, b, c = _BLUR, _ZERO, _BLUR
    for j in range(3):
        out[0, j] = j00 * axes[0, j] + j02 * axes[2, j]
        out[1, j] = j11 * axes[1, j] + j12 * axes[2, j]
        a += out[0, j] * out[0, j]
        b += out[0, j] * out[1, j]
        c += out[1, j] * out[1, j]
    return a, b, c


@kernel()
@no_type_check
def project(  # noqa: ANN201
    start, stop, means, quats, scales, opacities, colors, view, pinhole, width, height, splats, outlines, tile_rows,  # noqa: ANN001
):  # fmt: skip
    """Fill ``splats`` and ``outlines`` of Gaussians ``start..stop``, and the rows of tiles that they touch.

    ``tile_rows`` (N, 2) holds the first and the last row of tiles; last < first if the Gaussian is invisible. ``view``
    (3, 4) is world to camera; ``pinhole`` is fx, fy, cx, cy.
    """
    fx, fy, cx, cy = pinhole[0], pinhole[1], pinhole[2], pinhole[3]
    w, h = np.float32(width), np.float32(height)
    rotation, axes, on_image = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32), np.empty((2, 3), np.float32)
    for i in range(start, stop):
        tile_rows[i, 0], tile_rows[i, 1] = 1, 0
        opacity = opacities[i]
        x, y, z = _to_camera(means[i], view)
        if not (opacity >= _ALPHA_MIN) or not (z > _NEAR):
            continue
        inverse_z = _ONE / z
        slope_x, _ = _clamped_slope(x * inverse_z, fx, cx, w)
        slope_y, _ = _clamped_slope(y * inverse_z, fy, cy, h)
        _rotation(quats[i], rotation)
        _axes_in_camera(view, rotation, scales[i], axes)
        j00, j11 = fx * inverse_z, fy * inverse_z
        a, b, c = _axes_on_image(axes, j00, -j00 * slope_x, j11, -j11 * slope_y, on_image)
        det = a * c - b * b
        if not (det > _ZERO) or not (a + c < _MAX_VARIANCE):
            continue
        u, v = fx * x * inverse_z + cx, fy * y * inverse_z + cy
        log_opacity = math.log(opacity)
        reach = max(_ZERO, _TWO * (log_opacity - LOG_ALPHA_MIN))
        half_width, half_height = math.sqrt(reach * a), math.sqrt(reach * c)
        if not (u + half_width > _ZERO and u - half_width < w and v + half_height > _ZERO and v - half_height < h):
            continue
        tile_rows[i, 0] = np.int32(max(_ZERO, v - half_height)) // TILE
        tile_rows[i, 1] = np.int32(min(h - _ONE, v + half_height)) // TILE
        outlines[i, 0], outlines[i, 1] = b / c, math.sqrt(det) / c
        outlines[i, 2], outlines[i, 3] = half_height, b * half_width / a
        splats[i, 0], splats[i, 1] = u, v
        splats[i, 2], splats[i, 3], splats[i, 4] = c / det, -b / det, a / det
        splats[i, 5] = log_opacity
        splats[i, 6], splats[i, 7], splats[i, 8] = colors[i, 0], colors[i, 1], colors[i, 2]
        splats[i, 9] = z


@kernel()
@no_type_check
def _rotation_backward(quat, inverse, g, out):  # noqa: ANN001, ANN202
    """Write the gradient of an unnormalized quaternion, given the gradient ``g`` (3, 3) of its rotation matrix."""
    w, x, y, z = quat[0] * inverse, quat[1] * inverse, quat[2] * inverse, quat[3] * inverse
    d_w = _TWO * (x * (g[2, 1] - g[1, 2]) + y * (g[0, 2] - g[2, 0]) + z * (g[1, 0] - g[0, 1]))
    d_x = y * (g[0, 1] + g[1, 0]) + z * (g[0, 2] + g[2, 0]) + w * (g[2, 1] - g[1, 2])
    d_y = x * (g[0, 1] + g[1, 0]) + z * (g[1, 2] + g[2, 1]) + w * (g[0, 2] - g[2, 0])
    d_z = x * (g[0, 2] + g[2, 0]) + y * (g[1, 2] + g[2, 1]) + w * (g[1, 0] - g[0, 1])
    d_x = _TWO * (d_x - _TWO * x * (g[1, 1] + g[2, 2]))
    d_y = _TWO * (d_y - _TWO * y * (g[0, 0] + g[2, 2]))
    d_z = _TWO * (d_z - _TWO * z * (g[0, 0] + g[1, 1]))
    radial = d_w * w + d_x * x + d_y * y + d_z * z
    out[0] = (d_w - radial * w) * inverse
    out[1] = (d_x - radial * x) * inverse
    out[2] = (d_y - radial * y) * inverse
    out[3] = (d_z - radial * z) * inverse


@kernel()
@no_type_check
def _covariance_backward(splat, total):  # noqa: ANN001, ANN202
    """Return the gradients of the covariance's entries a, b, c, given the gradient G of its inverse Q: -Q G Q."""
    q_a, q_b, q_c = splat[2], splat[3], splat[4]
    g_a, g_b, g_c = total[6], _HALF * total[7], total[8]
    m00, m01 = q_a * g_a + q_b * g_b, q_a * g_b + q_b * g_c
    m10, m11 = q_b * g_a + q_c * g_b, q_b * g_b + q_c * g_c
    return -(m00 * q_a + m01 * q_b), -_TWO * (m00 * q_b + m01 * q_c), -(m10 * q_b + m11 * q_c)


@kernel()
@no_type_check
def _point_backward(x, y, z, pinhole, width, height, total, d_j00, d_j02, d_j11, d_j12, out):  # noqa: ANN001, ANN202
    """Write the gradient of the center in the camera frame, through its pixel, its depth and the Jacobian."""
    fx, fy, cx, cy = pinhole[0], pinhole[1], pinhole[2], pinhole[3]
    inverse = _ONE / z
    slope_x, free_x = _clamped_slope(x * inverse, fx, cx, width)
    slope_y, free_y = _clamped_slope(y * inverse, fy, cy, height)
    squared = inverse * inverse
    d_z = total[9] - (total[4] * fx * x + total[5] * fy * y + d_j00 * fx + d_j11 * fy) * squared
    # j02 = -fx slope / z, where the slope is x / z, or constant where it is clamped
    d_z += (d_j02 * fx * slope_x + d_j12 * fy * slope_y) * squared
    d_x, d_y = total[4] * fx * inverse, total[5] * fy * inverse
    if free_x:
        d_x -= d_j02 * fx * squared
        d_z += d_j02 * fx * slope_x * squared
    if free_y:
        d_y -= d_j12 * fy * squared
        d_z += d_j12 * fy * slope_y * squared
    out[0], out[1], out[2] = d_x, d_y, d_z


@kernel()
@no_type_check
def _image_axes_backward(splat, total, axes, on_image, j, d_axes):  # noqa: ANN001, ANN202
    """Write the gradient of V R diag(s); return the gradients of the Jacobian's four entries ``j``."""
    d_a, d_b, d_c = _covariance_backward(splat, total)
    d_j00, d_j02, d_j11, d_j12 = _ZERO, _ZERO, _ZERO, _ZERO
    for k in range(3):
        d_u = _TWO * d_a * on_image[0, k] + d_b * on_image[1, k]
        d_v = d_b * on_image[0, k] + _TWO * d_c * on_image[1, k]
        d_j00 += d_u * axes[0, k]
        d_j02 += d_u * axes[2, k]
        d_j11 += d_v * axes[1, k]
        d_j12 += d_v * axes[2, k]
        d_axes[0, k] = j[0] * d_u
        d_axes[1, k] = j[2] * d_v
        d_axes[2, k] = j[1] * d_u + j[3] * d_v
    return d_j00, d_j02, d_j11, d_j12


@kernel()
@no_type_check
def project_backward(  # noqa: ANN201
    start, stop, order, offsets, partials, means, quats, scales, opacities, view, pinhole, width, height, splats,  # noqa: ANN001
    d_means, d_quats, d_scales, d_opacities, d_colors, d_view,  # noqa: ANN001
):  # fmt: skip
    """Compute the gradients of all inputs of ``project`` for Gaussians ``order[start:stop]``.

    ``partials`` (pairs, 10) holds the gradients of RGB, log opacity, u, v, A, B, C, z for each pair of a Gaussian and a
    tile that it touches. Rows ``offsets[rank]..offsets[rank + 1]`` belong to ``order[rank]``. They are summed in this
    order, so the result does not depend on the number of threads. ``d_view`` (chunks, 3, 4) holds one sum per chunk of
    ``CAMERA_CHUNK`` ranks.
    """
    fx, fy = pinhole[0], pinhole[1]
    cx, cy = pinhole[2], pinhole[3]
    w, h = np.float32(width), np.float32(height)
    rotation, axes, on_image = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32), np.empty((2, 3), np.float32)
    d_axes, d_rotation, d_point = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32), np.empty(3, np.float32)
    total, jacobian = np.empty(PARTIALS, np.float32), np.empty(4, np.float32)
    for rank in range(start, stop):
        i = order[rank]
        total[:] = _ZERO
        for pair in range(offsets[rank], offsets[rank + 1]):
            for k in range(PARTIALS):
                total[k] += partials[pair, k]
        x, y, z = _to_camera(means[i], view)
        slope_x, _ = _clamped_slope(x / z, fx, cx, w)
        slope_y, _ = _clamped_slope(y / z, fy, cy, h)
        jacobian[0], jacobian[1] = fx / z, -fx / z * slope_x
        jacobian[2], jacobian[3] = fy / z, -fy / z * slope_y
        inverse = _rotation(quats[i], rotation)
        _axes_in_camera(view, rotation, scales[i], axes)
        _axes_on_image(axes, jacobian[0], jacobian[1], jacobian[2], jacobian[3], on_image)
        d_j00, d_j02, d_j11, d_j12 = _image_axes_backward(splats[i], total, axes, on_image, jacobian, d_axes)
        _point_backward(x, y, z, pinhole, w, h, total, d_j00, d_j02, d_j11, d_j12, d_point)
        camera_sum = d_view[rank // CAMERA_CHUNK]
        for p in range(3):
            for k in range(3):
                d_world_axis = view[0, p] * d_axes[0, k] + view[1, p] * d_axes[1, k] + view[2, p] * d_axes[2, k]
                d_scales[i, k] += rotation[p, k] * d_world_axis
                d_rotation[p, k] = d_world_axis * scales[i, k]
                d_entry = d_point[p] * means[i, k]
                for m in range(3):
                    d_entry += d_axes[p, m] * rotation[k, m] * scales[i, m]
                camera_sum[p, k] += d_entry
            camera_sum[p, 3] += d_point[p]
            d_means[i, p] = view[0, p] * d_point[0] + view[1, p] * d_point[1] + view[2, p] * d_point[2]
            d_colors[i, p] = total[p]
        _rotation_backward(quats[i], inverse, d_rotation, d_quats[i])
        d_opacities[i] = total[3] / opacities[i]
