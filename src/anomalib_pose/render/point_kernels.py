# SPDX-License-Identifier: Apache-2.0
"""Compiled loops over points: the nearest one in each cell, drawing as squares, lending of visibility."""

import math
from typing import no_type_check

from anomalib_pose.render.compiled import kernel

# Without fast-math every machine rounds alike, and the same points are visible everywhere.
_STRICT: frozenset[str] = frozenset()


@kernel(_STRICT)
@no_type_check
def find_nearest(cell, nearness, best, owner):  # noqa: ANN001, ANN201
    """Nearest point of each cell; the first one wins a tie.

    ``best`` starts at minus infinity, ``owner`` at -1; both are indexed by ``cell`` (n,).
    """
    for n in range(cell.shape[0]):
        if nearness[n] > best[cell[n]]:
            best[cell[n]] = nearness[n]
            owner[cell[n]] = n


@kernel(_STRICT)
@no_type_check
def draw_squares(x, y, nearness, half, best, owner):  # noqa: ANN001, ANN201
    """Draw points as squares of side ``2 half``: each covers the pixels whose centers lie in it; nearer ones hide.

    ``best`` (h, w) starts at minus infinity, ``owner`` (h, w) at -1; the first pixel's center is (0.5, 0.5).
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
    """Pixels ``out`` (h, w) as means over square blocks of samples: the value of the point drawn, or the background.

    ``owner`` has a multiple of the rows and columns of ``out``.
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
def find_lenders(index, seen, lender):  # noqa: ANN001, ANN201
    """For each point the seen one whose visibility it takes: itself, or the nearest in the order of ``index``.

    ``index`` (n,) are flat indices, ascending; ``seen`` (n,) flags; ``lender`` (n,) positions, -1 where nothing is
    seen at all.
    """
    count = index.shape[0]
    following = -1
    for n in range(count - 1, -1, -1):  # first pass: the next seen point
        if seen[n]:
            following = n
        lender[n] = following
    if following < 0:
        return
    for n in range(count):
        if seen[n]:
            continue
        if lender[n] >= 0:
            distance = index[lender[n]] - index[n]
        else:  # nothing is seen further on: begin again with the first point, which has a lender by now
            distance = index[count - 1] - index[n]
            lender[n] = lender[0]
        if n > 0 and index[n] - index[n - 1] < distance:
            lender[n] = lender[n - 1]
