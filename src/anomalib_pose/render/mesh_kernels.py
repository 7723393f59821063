# SPDX-License-Identifier: Apache-2.0
"""CPU kernels for triangle meshes: rasterization, interpolation at samples, visibility of lights and points."""

from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import kernel

# Without fast-math all machines round alike, and images written from a seed keep their bytes.
_STRICT: frozenset[str] = frozenset()

# Distance in barycentric coordinates at which samples outside an edge still count. It closes cracks between triangles
# with a common edge that is rounded differently.
_EDGE_TOLERANCE = 1e-9


@kernel(_STRICT)
@no_type_check
def rasterize_triangles(xy, nearness, faces, best, owner, weights):  # noqa: ANN001, ANN201
    """Fill the buffers with the nearest triangle at each sample; the first triangle wins a tie.

    ``nearness`` (V,) has to be linear on the image plane, larger for nearer vertices, and positive for vertices in
    front of the camera: inverse depth for a pinhole camera. ``best`` (h, w) receives the nearness and starts at zero,
    ``owner`` (h, w) receives the triangle and starts at -1. ``weights`` (h, w, 2) receives the barycentric weights of
    the triangle's second and third vertex, corrected for perspective.
    """
    height, width = best.shape
    for t in range(faces.shape[0]):
        i, j, k = faces[t, 0], faces[t, 1], faces[t, 2]
        qi, qj, qk = nearness[i], nearness[j], nearness[k]
        if not (qi > 0.0 and qj > 0.0 and qk > 0.0):
            continue
        ax, ay = xy[i, 0], xy[i, 1]
        bx, by = xy[j, 0] - ax, xy[j, 1] - ay
        cx, cy = xy[k, 0] - ax, xy[k, 1] - ay
        area = bx * cy - by * cx
        if area == 0.0:
            continue
        left, right = ax + min(0.0, bx, cx) - 0.5, ax + max(0.0, bx, cx) - 0.5
        top, bottom = ay + min(0.0, by, cy) - 0.5, ay + max(0.0, by, cy) - 0.5
        if right < 0.0 or bottom < 0.0 or left > width - 1 or top > height - 1:
            continue
        x_first, x_last = int(np.ceil(max(left, 0.0))), int(np.floor(min(right, width - 1.0)))
        y_first, y_last = int(np.ceil(max(top, 0.0))), int(np.floor(min(bottom, height - 1.0)))
        inverse = 1.0 / area
        for y in range(y_first, y_last + 1):
            py = y + 0.5 - ay
            for x in range(x_first, x_last + 1):
                px = x + 0.5 - ax
                v = (px * cy - py * cx) * inverse
                w = (bx * py - by * px) * inverse
                u = 1.0 - v - w
                if u < -_EDGE_TOLERANCE or v < -_EDGE_TOLERANCE or w < -_EDGE_TOLERANCE:
                    continue
                q = u * qi + v * qj + w * qk
                if q > best[y, x]:
                    best[y, x] = q
                    owner[y, x] = t
                    weights[y, x, 0] = v * qj / q
                    weights[y, x, 1] = w * qk / q


@kernel(_STRICT)
@no_type_check
def interpolate(values, faces, face, weights, out):  # noqa: ANN001, ANN201
    """Interpolate values (V, C) at samples: ``out[n] = sum_k weights[n, k] values[faces[face[n], k]]``."""
    channels = values.shape[1]
    for n in range(face.shape[0]):
        t = face[n]
        i, j, k = faces[t, 0], faces[t, 1], faces[t, 2]
        u, v, w = weights[n, 0], weights[n, 1], weights[n, 2]
        for c in range(channels):
            out[n, c] = u * values[i, c] + v * values[j, c] + w * values[k, c]


@kernel(_STRICT)
@no_type_check
def add_visible(xy, nearness, cosine, blocker, out):  # noqa: ANN001, ANN201
    """Add to ``out`` (V,) the cosine times the bilinear weight of the four texels that do not hide the vertex."""
    height, width = blocker.shape
    for n in range(xy.shape[0]):
        if cosine[n] <= 0.0:
            continue
        x, y = xy[n, 0] - 0.5, xy[n, 1] - 0.5
        x_low, y_low = int(np.floor(x)), int(np.floor(y))
        fx, fy = x - x_low, y - y_low
        visibility = 0.0
        for dy in range(2):
            for dx in range(2):
                xi, yi = x_low + dx, y_low + dy
                weight = (fx if dx else 1.0 - fx) * (fy if dy else 1.0 - fy)
                if xi < 0 or yi < 0 or xi >= width or yi >= height or blocker[yi, xi] <= nearness[n]:
                    visibility += weight
        out[n] += cosine[n] * visibility


@kernel(_STRICT)
@no_type_check
def mark_hidden(xy, nearness, faces, points, start, threshold, hidden):  # noqa: ANN001, ANN201
    """Mark points behind a triangle in ``hidden`` (N,): the triangle's nearness there exceeds ``threshold`` (N,).

    ``xy`` and ``nearness`` are those of ``rasterize_triangles``. ``points`` (N, 2) are sorted by pixel, row by row, in
    a grid with its corner at the origin. The points of pixel (y, x) start at ``start[y, x]`` and end before
    ``start[y, x + 1]``; ``start`` has one column more than the grid.
    """
    height, width = start.shape[0], start.shape[1] - 1
    for t in range(faces.shape[0]):
        i, j, k = faces[t, 0], faces[t, 1], faces[t, 2]
        qi, qj, qk = nearness[i], nearness[j], nearness[k]
        if not (qi > 0.0 and qj > 0.0 and qk > 0.0):
            continue
        ax, ay = xy[i, 0], xy[i, 1]
        bx, by = xy[j, 0] - ax, xy[j, 1] - ay
        cx, cy = xy[k, 0] - ax, xy[k, 1] - ay
        area = bx * cy - by * cx
        if area == 0.0:
            continue
        left, right = ax + min(0.0, bx, cx), ax + max(0.0, bx, cx)
        top, bottom = ay + min(0.0, by, cy), ay + max(0.0, by, cy)
        if right < 0.0 or bottom < 0.0 or left >= width or top >= height:
            continue
        x_first, x_last = int(max(left, 0.0)), int(min(right, width - 1.0))
        y_first, y_last = int(max(top, 0.0)), int(min(bottom, height - 1.0))
        inverse = 1.0 / area
        for y in range(y_first, y_last + 1):
            for n in range(start[y, x_first], start[y, x_last + 1]):
                if hidden[n]:
                    continue
                px, py = points[n, 0] - ax, points[n, 1] - ay
                v = (px * cy - py * cx) * inverse
                w = (bx * py - by * px) * inverse
                u = 1.0 - v - w
                if u >= 0.0 and v >= 0.0 and w >= 0.0 and u * qi + v * qj + w * qk > threshold[n]:
                    hidden[n] = True
