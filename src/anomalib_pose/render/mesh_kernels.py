# SPDX-License-Identifier: Apache-2.0
"""Compiled loops of the triangle renderer: scan conversion, gathering of samples, visibility of lights and points."""

from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import kernel

# Without fast-math every machine rounds alike, and pictures written from a seed keep their bytes.
_STRICT: frozenset[str] = frozenset()

# Samples this far outside an edge (in barycentric coordinates) still count: no crack opens between two triangles
# whose common edge is rounded differently.
_EDGE_TOLERANCE = 1e-9


@kernel(_STRICT)
@no_type_check
def scan(xy, nearness, faces, best, owner, weights):  # noqa: ANN001, ANN201
    """Fill the buffers with the nearest triangle at every sample; the first one wins a tie.

    ``nearness`` (V,) has to be linear on the image plane, larger where nearer, and positive where the vertex can be
    drawn: inverse depth for a pinhole camera. ``best`` (h, w) starts at zero, ``owner`` (h, w) at -1.
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
    """Values (V, C) of the vertices at samples: ``out[n] = sum_k weights[n, k] values[faces[face[n], k]]``."""
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
    """Add to ``out`` (V,) the cosine times the share of the four nearest texels that do not hide the vertex."""
    height, width = blocker.shape
    for n in range(xy.shape[0]):
        if cosine[n] <= 0.0:
            continue
        x, y = xy[n, 0] - 0.5, xy[n, 1] - 0.5
        x_low, y_low = int(np.floor(x)), int(np.floor(y))
        fx, fy = x - x_low, y - y_low
        share = 0.0
        for dy in range(2):
            for dx in range(2):
                xi, yi = x_low + dx, y_low + dy
                weight = (fx if dx else 1.0 - fx) * (fy if dy else 1.0 - fy)
                if xi < 0 or yi < 0 or xi >= width or yi >= height or blocker[yi, xi] <= nearness[n]:
                    share += weight
        out[n] += cosine[n] * share


@kernel(_STRICT)
@no_type_check
def mark_hidden(xy, nearness, faces, points, start, least, hidden):  # noqa: ANN001, ANN201
    """Mark in ``hidden`` (N,) the points (N, 2) that a triangle covers which is nearer there than ``least`` (N,).

    ``xy`` and ``nearness`` are those of ``scan``. Points are sorted by pixel, row by row, in a grid whose corner is the
    origin: those of pixel (y, x) are ``start[y, x]`` to the next entry, and ``start`` has one column more than pixels.
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
                if u >= 0.0 and v >= 0.0 and w >= 0.0 and u * qi + v * qj + w * qk > least[n]:
                    hidden[n] = True
