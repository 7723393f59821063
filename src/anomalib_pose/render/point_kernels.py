# SPDX-License-Identifier: Apache-2.0
"""CPU kernels over points: nearest point of a cell, squares, averages of samples, transfer of visibility."""

import math
from typing import no_type_check

from anomalib_pose.render.compiled import kernel

# Without fast-math all machines round alike, and the same points are visible on all of them.
_STRICT: frozenset[str] = frozenset()


@kernel(_STRICT)
@no_type_check
def find_nearest(cell, nearness, best, owner):  # noqa: ANN001, ANN201
    """Write the nearest point of each cell to ``owner``; the first point wins a tie.

    ``best`` starts at minus infinity, ``owner`` at -1; ``cell`` (n,) indexes both.
    """
    for n in range(cell.shape[0]):
        if nearness[n] > best[cell[n]]:
            best[cell[n]] = nearness[n]
            owner[cell[n]] = n


@kernel(_STRICT)
@no_type_check
def rasterize_squares(x, y, nearness, half, best, owner):  # noqa: ANN001, ANN201
    """Rasterize points as squares of side ``2 half``; a square covers the pixels with centers inside it.

    Nearer points hide farther points. ``best`` (h, w) starts at minus infinity, ``owner`` (h, w) at -1; the center of
    the first pixel is (0.5, 0.5).
    """
    height, width = owner.shape
    for n in range(x.shape[0]):
        first_column = max(0, math.ceil(x[n] - half - 0.5))
        last_column = min(width - 1, math.ceil(x[n] + half - 0.5) - 1)
        first_row = max(0, math.ceil(y[n] - half - 0.5))
        last_row = min(height - 1, math.ceil(y[n] + half - 0.5) - 1)
        near = nearness[n]
        for row in range(first_row, last_row + 1):
            for column in range(first_column, last_column + 1):
                if near > best[row, column]:
                    best[row, column] = near
                    owner[row, column] = n


@kernel(_STRICT)
@no_type_check
def average_samples(owner, values, background, out):  # noqa: ANN001, ANN201
    """Average the values of the points in each square block of samples; samples without a point are background.

    ``owner`` has a multiple of the rows and columns of ``out`` (h, w).
    """
    height, width = out.shape
    side = owner.shape[0] // height
    for row in range(height):
        for column in range(width):
            total = 0.0
            for y in range(row * side, (row + 1) * side):
                for x in range(column * side, (column + 1) * side):
                    n = owner[y, x]
                    total += values[n] if n >= 0 else background
            out[row, column] = total / (side * side)


@kernel(_STRICT)
@no_type_check
def find_donors(index, visible, donor):  # noqa: ANN001, ANN201
    """Find the donor of each point: the visible point whose flags it takes; see ``fill_visibility``.

    A visible point is its own donor. ``index`` (n,) are flat indices in ascending order, ``visible`` (n,) flags.
    ``donor`` (n,) receives positions in ``index``, or -1 everywhere if no point is visible.
    """
    count = index.shape[0]
    next_visible = -1
    for n in range(count - 1, -1, -1):  # first pass: the next visible point
        if visible[n]:
            next_visible = n
        donor[n] = next_visible
    if next_visible < 0:
        return
    for n in range(count):
        if visible[n]:
            continue
        if donor[n] >= 0:
            distance = index[donor[n]] - index[n]
        else:  # no visible point follows: continue at the first point, which has a donor by now
            distance = index[count - 1] - index[n]
            donor[n] = donor[0]
        if n > 0 and index[n] - index[n - 1] < distance:
            donor[n] = donor[n - 1]
