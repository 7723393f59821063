# SPDX-License-Identifier: Apache-2.0
"""CPU kernels that sort splats into blocks of 8 x 8 pixels and composite them front to back.

Image formation is that of 3D Gaussian splatting (Kerbl et al. 2023, equation 3) with the constants of gsplat's classic
mode: a splat adds ``alpha = min(0.999, opacity * exp(-sigma))`` where that is at least 1/255, and a pixel is finished
before the splat that would take its transmittance to 1e-4 or less.

All state of a block is one flat buffer with constant offsets: between separate arrays LLVM gives up on proving that
they do not overlap, and does not vectorize. A finished pixel keeps its transmittance with a negative sign.
"""

import math
from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import REDUCTION, exp, kernel
from anomalib_pose.render.splat_projection import BLOCK, LOG_ALPHA_MIN

_PIXELS = BLOCK * BLOCK
_ALPHA_MAX = np.float32(0.999)
_STOP = np.float32(1e-4)
_SLACK = np.float32(0.01)  # pixels by which an outline is widened against round-off
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_ZERO = np.float32(0)
_RADIX_BITS = 11
_RADIX = 1 << _RADIX_BITS
_CHECK = 7  # a block is tested for being finished once every _CHECK + 1 splats


@kernel()
@no_type_check
def sort_by_depth(splats, rows):  # noqa: ANN001, ANN201
    """Indices of visible splats, near to far, equal depths in order of index: a stable radix sort."""
    keys, order = np.empty(rows.shape[0], np.uint32), np.empty(rows.shape[0], np.int32)
    count = 0
    bits = splats.view(np.uint32)  # positive floats order like their bits
    for i in range(rows.shape[0]):
        if rows[i, 1] >= rows[i, 0]:
            keys[count], order[count] = bits[i, 9], i
            count += 1
    keys, order = keys[:count], order[:count]
    other_keys, other_order = np.empty(count, np.uint32), np.empty(count, np.int32)
    for digit in range(3):
        shift = np.uint32(_RADIX_BITS * digit)
        mask = np.uint32(_RADIX - 1)
        position = np.zeros(_RADIX + 1, np.int64)
        for i in range(count):
            position[((keys[i] >> shift) & mask) + 1] += 1
        for i in range(_RADIX):
            position[i + 1] += position[i]
        for i in range(count):
            bucket = (keys[i] >> shift) & mask
            other_keys[position[bucket]], other_order[position[bucket]] = keys[i], order[i]
            position[bucket] += 1
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
    return order


@kernel()
@no_type_check
def _columns(u, v, outline, row, width):  # noqa: ANN001, ANN202
    """First and last block of a row of blocks that hold a pixel center inside a splat's outline; last < first: none."""
    slope, spread, half_height, lowest = outline[0], outline[1], outline[2], outline[3]
    top = max(-half_height, np.float32(row * BLOCK) + _HALF - _SLACK - v)
    bottom = min(half_height, np.float32(row * BLOCK + BLOCK) - _HALF + _SLACK - v)
    if top > bottom:
        return 1, 0
    at_right = min(bottom, max(top, lowest))
    at_left = min(bottom, max(top, -lowest))
    squared = half_height * half_height
    right = u + slope * at_right + spread * math.sqrt(max(_ZERO, squared - at_right * at_right)) + _SLACK - _HALF
    left = u + slope * at_left - spread * math.sqrt(max(_ZERO, squared - at_left * at_left)) - _SLACK - _HALF
    last_pixel = np.float32(width - 1)
    if right < _ZERO or left > last_pixel:
        return 1, 0
    first = np.int64(math.ceil(max(_ZERO, left)))
    last = np.int64(math.floor(min(last_pixel, right)))
    if last < first:
        return 1, 0
    return first // BLOCK, last // BLOCK


@kernel()
@no_type_check
def count_pairs(start, stop, order, splats, outlines, rows, width, counts):  # noqa: ANN001, ANN201
    """Number of blocks that each of the splats ``order[start:stop]`` touches."""
    for rank in range(start, stop):
        i = order[rank]
        total = 0
        for row in range(rows[i, 0], rows[i, 1] + 1):
            first, last = _columns(splats[i, 0], splats[i, 1], outlines[i], row, width)
            total += last - first + 1
        counts[rank] = total


@kernel()
@no_type_check
def sort_into_blocks(order, offsets, splats, outlines, rows, width, across, down):  # noqa: ANN001, ANN201
    """Lists of splats per block, near to far, by a counting sort of all pairs of splat and block.

    Returns:
        where the list of each block begins (blocks + 1,), index of the splat at each place of the lists (pairs,), and
        the pair's number when counted splat by splat (pairs,), which is where its partial gradients are put.
    """
    pairs = offsets[-1]
    block_of, splat_of = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
    begins = np.zeros(across * down + 1, np.int64)
    pair = 0
    for i in order:
        for row in range(rows[i, 0], rows[i, 1] + 1):
            first, last = _columns(splats[i, 0], splats[i, 1], outlines[i], row, width)
            for column in range(first, last + 1):
                block = row * across + column
                block_of[pair], splat_of[pair] = block, i
                begins[block + 1] += 1
                pair += 1
    for block in range(across * down):
        begins[block + 1] += begins[block]
    place = begins.copy()
    listed, numbers = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
    for pair in range(pairs):
        block = block_of[pair]
        listed[place[block]], numbers[place[block]] = splat_of[pair], pair
        place[block] += 1
    return begins, listed, numbers


@kernel()
@no_type_check
def _finished(state):  # noqa: ANN001, ANN202
    most = _ZERO
    for lane in range(_PIXELS):
        most = max(most, state[lane])
    return most <= _ZERO


@kernel()
@no_type_check
def _begin(state, x0, y0, width, height):  # noqa: ANN001, ANN202
    """Transmittance 1 inside the image, 0 outside; pixel centers in lanes 64..191."""
    for lane in range(_PIXELS):
        x, y = x0 + (lane & (BLOCK - 1)), y0 + lane // BLOCK
        state[lane] = _ONE if (x < width) & (y < height) else _ZERO
        state[64 + lane], state[128 + lane] = np.float32(x) + _HALF, np.float32(y) + _HALF


@kernel()
@no_type_check
def _composite(state, u, v, a, b, c, log_opacity, red, green, blue, z):  # noqa: ANN001, ANN202
    for lane in range(_PIXELS):
        dx, dy = u - state[64 + lane], v - state[128 + lane]
        power = (a * dx + b * dy) * dx + (c * dy * dy + log_opacity)
        alpha = min(exp(min(power, log_opacity)), _ALPHA_MAX)
        before = state[lane]
        weight = alpha * before if power >= LOG_ALPHA_MIN else _ZERO
        after = before - weight
        goes_on = after > _STOP
        weight = weight if goes_on else _ZERO
        state[lane] = after if goes_on else -abs(before)
        state[192 + lane] += weight * red
        state[256 + lane] += weight * green
        state[320 + lane] += weight * blue
        state[384 + lane] += weight * z


@kernel()
@no_type_check
def draw(start, stop, begins, listed, splats, across, rgb, depth, alpha, drawn):  # noqa: ANN001, ANN201
    """Draws blocks ``start..stop``; ``drawn`` takes how many splats of a block's list were looked at."""
    height, width = alpha.shape
    state = np.empty(448, np.float32)
    for block in range(start, stop):
        x0, y0 = (block % across) * BLOCK, (block // across) * BLOCK
        _begin(state, x0, y0, width, height)
        state[192:] = _ZERO
        place = begins[block]
        while place < begins[block + 1]:
            if ((place - begins[block]) & _CHECK) == _CHECK and _finished(state):
                break
            s = splats[listed[place]]
            _composite(state, s[0], s[1], -_HALF * s[2], -s[3], -_HALF * s[4], s[5], s[6], s[7], s[8], s[9])
            place += 1
        drawn[block] = place - begins[block]
        for lane in range(_PIXELS):
            x, y = x0 + (lane & (BLOCK - 1)), y0 + lane // BLOCK
            if (x < width) & (y < height):
                opacity = _ONE - abs(state[lane])
                alpha[y, x] = opacity
                depth[y, x] = state[384 + lane] / opacity if opacity > _ZERO else _ZERO
                rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2] = state[192 + lane], state[256 + lane], state[320 + lane]


@kernel(REDUCTION)
@no_type_check
def _composite_backward(state, u, v, a, b, c, log_opacity, red, green, blue, z):  # noqa: ANN001, ANN202
    """Sums over the block of d_rgb, d_z, d_sigma times 1, dx, dy, dx², dx dy, dy².

    Lanes from 192: what the splats from here on contribute to the loss; then the gradients of RGB, of the sum of weight
    times z, and of the sum of weights.
    """
    s_r, s_g, s_b, s_z = _ZERO, _ZERO, _ZERO, _ZERO
    s_0, s_x, s_y, s_xx, s_xy, s_yy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for lane in range(_PIXELS):
        dx, dy = u - state[64 + lane], v - state[128 + lane]
        power = (a * dx + b * dy) * dx + (c * dy * dy + log_opacity)
        peak = exp(min(power, log_opacity))
        alpha = min(peak, _ALPHA_MAX) if power >= LOG_ALPHA_MIN else _ZERO
        before = state[lane]
        weight = alpha * before
        after = before - weight
        goes_on = after > _STOP
        weight = weight if goes_on else _ZERO
        state[lane] = after if goes_on else -abs(before)
        d_r, d_g, d_b, d_zz = state[256 + lane], state[320 + lane], state[384 + lane], state[448 + lane]
        own = weight * (d_r * red + d_g * green + d_b * blue + d_zz * z + state[512 + lane])
        behind = state[192 + lane] - own
        state[192 + lane] = behind
        d_sigma = alpha * behind / (_ONE - alpha) - own
        d_sigma = d_sigma if (goes_on & (peak <= _ALPHA_MAX)) else _ZERO
        s_r += weight * d_r
        s_g += weight * d_g
        s_b += weight * d_b
        s_z += weight * d_zz
        d_x, d_y = d_sigma * dx, d_sigma * dy
        s_0 += d_sigma
        s_x += d_x
        s_y += d_y
        s_xx += d_x * dx
        s_xy += d_x * dy
        s_yy += d_y * dy
    return s_r, s_g, s_b, s_z, s_0, s_x, s_y, s_xx, s_xy, s_yy


@kernel()
@no_type_check
def _begin_backward(state, x0, y0, rgb, depth, alpha, d_rgb, d_depth, d_alpha):  # noqa: ANN001, ANN202
    """Gradients of a block's pixels, with the expected depth taken apart into its two sums."""
    height, width = alpha.shape
    _begin(state, x0, y0, width, height)
    state[192:] = _ZERO
    for lane in range(_PIXELS):
        x, y = x0 + (lane & (BLOCK - 1)), y0 + lane // BLOCK
        if (x < width) & (y < height) & (alpha[min(y, height - 1), min(x, width - 1)] > _ZERO):
            g_sum_z = d_depth[y, x] / alpha[y, x]
            g_alpha = d_alpha[y, x] - g_sum_z * depth[y, x]
            contribution = d_alpha[y, x] * alpha[y, x]
            for channel in range(3):
                state[256 + 64 * channel + lane] = d_rgb[y, x, channel]
                contribution += d_rgb[y, x, channel] * rgb[y, x, channel]
            state[192 + lane], state[448 + lane], state[512 + lane] = contribution, g_sum_z, g_alpha


@kernel()
@no_type_check
def draw_backward(  # noqa: ANN201
    start, stop, begins, listed, numbers, drawn, splats, across, rgb, depth, alpha, d_rgb, d_depth, d_alpha, partials,  # noqa: ANN001
):  # fmt: skip
    """Writes ``partials`` (pairs, 10), given as zeros, for blocks ``start..stop``; see ``project_backward``."""
    state = np.empty(576, np.float32)
    for block in range(start, stop):
        if drawn[block] == 0:
            continue
        _begin_backward(
            state, (block % across) * BLOCK, (block // across) * BLOCK, rgb, depth, alpha, d_rgb, d_depth, d_alpha
        )
        for place in range(begins[block], begins[block] + drawn[block]):
            s = splats[listed[place]]
            a, b, c = s[2], s[3], s[4]
            s_r, s_g, s_b, s_z, s_0, s_x, s_y, s_xx, s_xy, s_yy = _composite_backward(
                state, s[0], s[1], -_HALF * a, -b, -_HALF * c, s[5], s[6], s[7], s[8], s[9]
            )
            out = partials[numbers[place]]
            out[0], out[1], out[2], out[3] = s_r, s_g, s_b, -s_0
            out[4], out[5] = a * s_x + b * s_y, b * s_x + c * s_y
            out[6], out[7], out[8], out[9] = _HALF * s_xx, s_xy, _HALF * s_yy, s_z
