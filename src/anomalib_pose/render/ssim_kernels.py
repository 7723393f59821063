# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of structural similarity and of its gradient; each makes one pass over the images.

Images are (C, H, 3 W) float32. They are split into tiles of ``STRIP`` numbers by ``BAND`` rows. A kernel processes a
tile row by row. It blurs the fields of a row horizontally and stores them in a ring buffer with as many rows as the
window. Then it blurs the ring buffer vertically. All state of a tile is one flat buffer, see ``splat_tiles``. Loops run
over slices of the buffer: an index that numba cannot prove to be non-negative prevents vectorization.
"""

import math
from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import REDUCTION, kernel

STRIP = 96
BAND = 64
C1, C2 = 0.01**2, 0.03**2
RADIUS = 5
SIGMA = 1.5

_TAPS = 2 * RADIUS + 1
_WEIGHTS = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
_WEIGHTS = (_WEIGHTS / _WEIGHTS.sum()).astype(np.float32)
_W0, _W1, _W2, _W3, _W4, _W5 = _WEIGHTS[RADIUS:]
_HALO = 3 * RADIUS
_PADDED = 128  # width of STRIP with its halo, rounded up
_FIELDS = 5
_BLURRED = _FIELDS * _PADDED  # offset of the blurred fields
_RESULTS = _BLURRED + _FIELDS * STRIP  # similarity and its derivatives with respect to the means of a, a² and a b
_RING = _RESULTS + 4 * STRIP
_ROW = _FIELDS * STRIP
_STATE = _RING + _TAPS * _ROW
_A, _B, _AA, _BB, _AB = 0, _PADDED, 2 * _PADDED, 3 * _PADDED, 4 * _PADDED
_C1, _C2 = np.float32(C1), np.float32(C2)
_ONE = np.float32(1)
_TWO = np.float32(2)
_ZERO = np.float32(0)


def tiles(images: int, height: int, width: int) -> int:
    """Return the number of tiles of images (images, height, width, 3)."""
    return images * math.ceil(height / BAND) * math.ceil(3 * width / STRIP)


@kernel()
@no_type_check
def _tile(index, height, numbers):  # noqa: ANN001, ANN202
    """Return a tile's image, first row, last row + 1, and first number of a row."""
    across, down = -(-numbers // STRIP), -(-height // BAND)
    strip, rest = index % across, index // across
    first = (rest % down) * BAND
    return rest // down, first, min(first + BAND, height), strip * STRIP


@kernel()
@no_type_check
def _load(row, x0, state, at):  # noqa: ANN001, ANN202
    """Copy a row of a tile with its halo to ``state[at:]``; 0 outside the image."""
    begin = max(0, _HALO - x0)
    end = min(STRIP + 2 * _HALO, row.shape[0] + _HALO - x0)
    out = state[at : at + _PADDED]
    out[:begin] = _ZERO
    out[end:] = _ZERO
    inside, source = out[begin:end], row[x0 - _HALO + begin : x0 - _HALO + end]
    for i in range(end - begin):
        inside[i] = source[i]


@kernel()
@no_type_check
def _products(state):  # noqa: ANN001, ANN202
    """Fill the fields a², b² and a b of a row."""
    for i in range(_PADDED):
        a, b = state[_A + i], state[_B + i]
        state[_AA + i], state[_BB + i], state[_AB + i] = a * a, b * b, a * b


@kernel()
@no_type_check
def _blur_horizontally(state, source, target):  # noqa: ANN001, ANN202
    """Blur a row of one field; neighboring pixels of a channel are three numbers apart."""
    s, out = state[source : source + _PADDED], state[target : target + STRIP]
    for i in range(STRIP):
        total = _W0 * s[i + 15] + _W1 * (s[i + 12] + s[i + 18]) + _W2 * (s[i + 9] + s[i + 21])
        out[i] = total + (_W3 * (s[i + 6] + s[i + 24]) + _W4 * (s[i + 3] + s[i + 27]) + _W5 * (s[i] + s[i + 30]))


@kernel()
@no_type_check
def _blur_vertically(state, weights, field):  # noqa: ANN001, ANN202
    """Blur one field of the ring buffer vertically; ``weights`` belong to the rows of the ring buffer."""
    w0, w1, w2, w3, w4, w5 = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5]
    w6, w7, w8, w9, w10 = weights[6], weights[7], weights[8], weights[9], weights[10]
    s, out = state[_RING + field * STRIP :], state[_BLURRED + field * STRIP :]
    for i in range(STRIP):
        total = w0 * s[i] + w1 * s[i + _ROW] + w2 * s[i + 2 * _ROW] + w3 * s[i + 3 * _ROW]
        total += w4 * s[i + 4 * _ROW] + w5 * s[i + 5 * _ROW] + w6 * s[i + 6 * _ROW] + w7 * s[i + 7 * _ROW]
        out[i] = total + (w8 * s[i + 8 * _ROW] + w9 * s[i + 9 * _ROW] + w10 * s[i + 10 * _ROW])


@kernel()
@no_type_check
def _blur(state, weights, fields, y, y0, height):  # noqa: ANN001, ANN202
    """Add row ``y`` to the ring buffer; if it holds the window of row ``y - RADIUS``, blur that row and return True."""
    slot = (y - y0 + RADIUS) % _TAPS
    for field in range(fields):
        target = _RING + slot * _ROW + field * STRIP
        if 0 <= y < height:
            _blur_horizontally(state, field * _PADDED, target)
        else:
            state[target : target + STRIP] = _ZERO
    if y < y0 + RADIUS:
        return False
    for k in range(_TAPS):
        weights[k] = _WEIGHTS[(k - slot - 1) % _TAPS]
    for field in range(fields):
        _blur_vertically(state, weights, field)
    return True


@kernel()
@no_type_check
def _similarity(state):  # noqa: ANN001, ANN202
    """Compute the similarity (Wang et al. 2004, equation 13) and its derivatives from the blurred a, b, a², b², a b."""
    for i in range(STRIP):
        j = _BLURRED + i
        a, b = state[j], state[j + STRIP]
        product, squares = a * b, a * a + b * b
        a1, a2 = _TWO * product + _C1, _TWO * (state[j + 4 * STRIP] - product) + _C2
        b1, b2 = squares + _C1, state[j + 2 * STRIP] + state[j + 3 * STRIP] - squares + _C2
        inverse = _ONE / (b1 * b2)
        value = a1 * a2 * inverse
        r = _RESULTS + i
        state[r] = value
        state[r + STRIP] = _TWO * inverse * (b * (a2 - a1) - a * value * (b2 - b1))
        state[r + 2 * STRIP] = -value * b1 * inverse
        state[r + 3 * STRIP] = _TWO * a1 * inverse


@kernel(REDUCTION)
@no_type_check
def _sum(state, count):  # noqa: ANN001, ANN202
    """Sum the first ``count`` similarities of a row."""
    total = _ZERO
    for i in range(count):
        total += state[_RESULTS + i]
    return total


@kernel()
@no_type_check
def similarity(start, stop, a, b, sums, derivatives):  # noqa: ANN001, ANN201
    """Write the sum of the similarity over each of the tiles ``start..stop`` to ``sums``.

    ``derivatives`` (3, C, H, 3 W) receives the derivatives of the similarity with respect to the blurred a, a² and a b,
    unless it is empty.
    """
    height, numbers = a.shape[1], a.shape[2]
    state, weights = np.zeros(_STATE, np.float32), np.empty(_TAPS, np.float32)
    for index in range(start, stop):
        image, y0, y1, x0 = _tile(index, height, numbers)
        count = min(STRIP, numbers - x0)
        total = 0.0
        for y in range(y0 - RADIUS, y1 + RADIUS):
            if 0 <= y < height:
                _load(a[image, y], x0, state, _A)
                _load(b[image, y], x0, state, _B)
                _products(state)
            if _blur(state, weights, 5, y, y0, height):
                _similarity(state)
                total += _sum(state, count)
                if derivatives.size:
                    for k in range(3):
                        at = _RESULTS + (k + 1) * STRIP
                        derivatives[k, image, y - RADIUS, x0 : x0 + count] = state[at : at + count]
        sums[index] = total


@kernel()
@no_type_check
def _gradient(state, row_a, row_b, scale, out):  # noqa: ANN001, ANN202
    """Write the gradient with respect to a row of a, from the blurred derivatives."""
    for i in range(out.shape[0]):
        j = _BLURRED + i
        through_products = _TWO * row_a[i] * state[j + STRIP] + row_b[i] * state[j + 2 * STRIP]
        out[i] = scale * (state[j] + through_products)


@kernel()
@no_type_check
def similarity_backward(start, stop, a, b, derivatives, scale, d_a):  # noqa: ANN001, ANN201
    """Write the gradient of ``scale`` times the summed similarity with respect to a, in tiles ``start..stop``."""
    height, numbers = a.shape[1], a.shape[2]
    state, weights = np.zeros(_STATE, np.float32), np.empty(_TAPS, np.float32)
    for index in range(start, stop):
        image, y0, y1, x0 = _tile(index, height, numbers)
        x1 = min(x0 + STRIP, numbers)
        for y in range(y0 - RADIUS, y1 + RADIUS):
            if 0 <= y < height:
                for k in range(3):
                    _load(derivatives[k, image, y], x0, state, k * _PADDED)
            if _blur(state, weights, 3, y, y0, height):
                row = y - RADIUS
                _gradient(state, a[image, row, x0:x1], b[image, row, x0:x1], scale, d_a[image, row, x0:x1])
