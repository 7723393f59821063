# SPDX-License-Identifier: Apache-2.0
"""CPU kernels that sort splats into tiles of 8 x 8 pixels and composite them front to back.

The image formation is that of 3D Gaussian splatting (Kerbl et al. 2023, equation 3) with the constants of gsplat's
classic mode. A splat contributes ``alpha = min(0.999, opacity * exp(-sigma))`` where alpha is at least 1/255. A pixel
is finished before the splat that would take its transmittance to 1e-4 or less.

All state of a tile is one flat buffer with constant offsets. LLVM cannot prove that separate arrays do not overlap, and
then does not vectorize. A finished pixel stores its transmittance with a negative sign.
"""

import math
from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import REDUCTION, exp, kernel
from anomalib_pose.render.splat_projection import LOG_ALPHA_MIN, TILE

_PIXELS = TILE * TILE
_ALPHA_MAX = np.float32(0.999)
_STOP = np.float32(1e-4)
_SLACK = np.float32(0.01)  # pixels; widens an outline against round-off
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_ZERO = np.float32(0)
_RADIX_BITS = 11
_RADIX = 1 << _RADIX_BITS
_CHECK = 7  # a tile is tested for completion once every _CHECK + 1 splats


@kernel()
@no_type_check
def sort_by_depth(splats, tile_rows):  # noqa: ANN001, ANN201
    """Return the indices of visible splats, near to far, equal depths in order of index: a stable radix sort."""
    keys, order = np.empty(tile_rows.shape[0], np.uint32), np.empty(tile_rows.shape[0], np.int32)
    count = 0
    bits = splats.view(np.uint32)  # positive floats sort like their bits
    for i in range(tile_rows.shape[0]):
        if tile_rows[i, 1] >= tile_rows[i, 0]:
            keys[count], order[count] = bits[i, 9], i
            count += 1
    keys, order = keys[:count], order[:count]
    next_keys, next_order = np.empty(count, np.uint32), np.empty(count, np.int32)
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
            next_keys[position[bucket]], next_order[position[bucket]] = keys[i], order[i]
            position[bucket] += 1
        keys, next_keys = next_keys, keys
        order, next_order = next_order, order
    return order


@kernel()
@no_type_check
def _tile_columns(u, v, outline, row, width):  # noqa: ANN001, ANN202
    """Return the first and last column of tiles with a pixel center inside a splat's outline; last < first if none."""
    slope, spread, half_height, rightmost_v = outline[0], outline[1], outline[2], outline[3]
    top = max(-half_height, np.float32(row * TILE) + _HALF - _SLACK - v)
    bottom = min(half_height, np.float32(row * TILE + TILE) - _HALF + _SLACK - v)
    if top > bottom:
        return 1, 0
    at_right = min(bottom, max(top, rightmost_v))
    at_left = min(bottom, max(top, -rightmost_v))
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
    return first // TILE, last // TILE


@kernel()
@no_type_check
def count_pairs(start, stop, order, splats, outlines, tile_rows, width, counts):  # noqa: ANN001, ANN201
    """Write to ``counts`` the number of tiles that each of the splats ``order[start:stop]`` touches."""
    for rank in range(start, stop):
        i = order[rank]
        total = 0
        for row in range(tile_rows[i, 0], tile_rows[i, 1] + 1):
            first, last = _tile_columns(splats[i, 0], splats[i, 1], outlines[i], row, width)
            total += last - first + 1
        counts[rank] = total


@kernel()
@no_type_check
def sort_into_tiles(order, offsets, splats, outlines, tile_rows, width, columns, rows):  # noqa: ANN001, ANN201
    """Build one list of splats per tile, near to far, by a counting sort of all pairs of a splat and a tile.

    Returns:
        ``tile_starts`` (tiles + 1,), the start of each tile's list; ``tile_splats`` (pairs,), the splat at each place
        of the lists; ``pair_numbers`` (pairs,), the number of each pair when counted splat by splat, which is the row
        of its partial gradients.
    """
    pairs = offsets[-1]
    tile_of, splat_of = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
    tile_starts = np.zeros(columns * rows + 1, np.int64)
    pair = 0
    for i in order:
        for row in range(tile_rows[i, 0], tile_rows[i, 1] + 1):
            first, last = _tile_columns(splats[i, 0], splats[i, 1], outlines[i], row, width)
            for column in range(first, last + 1):
                tile = row * columns + column
                tile_of[pair], splat_of[pair] = tile, i
                tile_starts[tile + 1] += 1
                pair += 1
    for tile in range(columns * rows):
        tile_starts[tile + 1] += tile_starts[tile]
    place = tile_starts.copy()
    tile_splats, pair_numbers = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
    for pair in range(pairs):
        tile = tile_of[pair]
        tile_splats[place[tile]], pair_numbers[place[tile]] = splat_of[pair], pair
        place[tile] += 1
    return tile_starts, tile_splats, pair_numbers


@kernel()
@no_type_check
def _finished(state):  # noqa: ANN001, ANN202
    """Return whether all pixels of the tile are finished."""
    largest = _ZERO
    for lane in range(_PIXELS):
        largest = max(largest, state[lane])
    return largest <= _ZERO


@kernel()
@no_type_check
def _init_state(state, x0, y0, width, height):  # noqa: ANN001, ANN202
    """Set the transmittance to 1 inside the image and 0 outside, and the pixel centers in lanes 64..191."""
    for lane in range(_PIXELS):
        x, y = x0 + (lane & (TILE - 1)), y0 + lane // TILE
        state[lane] = _ONE if (x < width) & (y < height) else _ZERO
        state[64 + lane], state[128 + lane] = np.float32(x) + _HALF, np.float32(y) + _HALF


@kernel()
@no_type_check
def _add_splat(state, u, v, a, b, c, log_opacity, red, green, blue, z):  # noqa: ANN001, ANN202
    """Composite one splat behind the splats before it; lanes from 192 hold the sums of RGB and of weight times z."""
    for lane in range(_PIXELS):
        dx, dy = u - state[64 + lane], v - state[128 + lane]
        power = (a * dx + b * dy) * dx + (c * dy * dy + log_opacity)
        alpha = min(exp(min(power, log_opacity)), _ALPHA_MAX)
        before = state[lane]
        weight = alpha * before if power >= LOG_ALPHA_MIN else _ZERO
        after = before - weight
        is_open = after > _STOP
        weight = weight if is_open else _ZERO
        state[lane] = after if is_open else -abs(before)
        state[192 + lane] += weight * red
        state[256 + lane] += weight * green
        state[320 + lane] += weight * blue
        state[384 + lane] += weight * z


@kernel()
@no_type_check
def composite(start, stop, tile_starts, tile_splats, splats, columns, rgb, depth, alpha, visited):  # noqa: ANN001, ANN201
    """Composite tiles ``start..stop``; write to ``visited`` how many splats of its list each tile used."""
    height, width = alpha.shape
    state = np.empty(448, np.float32)
    for tile in range(start, stop):
        x0, y0 = (tile % columns) * TILE, (tile // columns) * TILE
        _init_state(state, x0, y0, width, height)
        state[192:] = _ZERO
        place = tile_starts[tile]
        while place < tile_starts[tile + 1]:
            if ((place - tile_starts[tile]) & _CHECK) == _CHECK and _finished(state):
                break
            s = splats[tile_splats[place]]
            _add_splat(state, s[0], s[1], -_HALF * s[2], -s[3], -_HALF * s[4], s[5], s[6], s[7], s[8], s[9])
            place += 1
        visited[tile] = place - tile_starts[tile]
        for lane in range(_PIXELS):
            x, y = x0 + (lane & (TILE - 1)), y0 + lane // TILE
            if (x < width) & (y < height):
                opacity = _ONE - abs(state[lane])
                alpha[y, x] = opacity
                depth[y, x] = state[384 + lane] / opacity if opacity > _ZERO else _ZERO
                rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2] = state[192 + lane], state[256 + lane], state[320 + lane]


@kernel(REDUCTION)
@no_type_check
def _add_splat_backward(state, u, v, a, b, c, log_opacity, red, green, blue, z):  # noqa: ANN001, ANN202
    """Sum over the tile d_rgb, d_z, and d_sigma times 1, dx, dy, dx², dx dy, dy².

    Lanes from 192 hold the contribution of this and all later splats to the loss. The lanes after them hold the
    gradients of RGB, of the sum of weight times z, and of the sum of weights.
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
        is_open = after > _STOP
        weight = weight if is_open else _ZERO
        state[lane] = after if is_open else -abs(before)
        d_r, d_g, d_b, d_zz = state[256 + lane], state[320 + lane], state[384 + lane], state[448 + lane]
        contribution = weight * (d_r * red + d_g * green + d_b * blue + d_zz * z + state[512 + lane])
        behind = state[192 + lane] - contribution
        state[192 + lane] = behind
        d_sigma = alpha * behind / (_ONE - alpha) - contribution
        d_sigma = d_sigma if (is_open & (peak <= _ALPHA_MAX)) else _ZERO
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
def _init_backward_state(state, x0, y0, rgb, depth, alpha, d_rgb, d_depth, d_alpha):  # noqa: ANN001, ANN202
    """Load the gradients of a tile's pixels, with the expected depth split into its two sums."""
    height, width = alpha.shape
    _init_state(state, x0, y0, width, height)
    state[192:] = _ZERO
    for lane in range(_PIXELS):
        x, y = x0 + (lane & (TILE - 1)), y0 + lane // TILE
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
def composite_backward(  # noqa: ANN201
    start, stop, tile_starts, tile_splats, pair_numbers, visited, splats, columns,  # noqa: ANN001
    rgb, depth, alpha, d_rgb, d_depth, d_alpha, partials,  # noqa: ANN001
):  # fmt: skip
    """Write ``partials`` (pairs, 10), which starts as zeros, for tiles ``start..stop``; see ``project_backward``."""
    state = np.empty(576, np.float32)
    for tile in range(start, stop):
        if visited[tile] == 0:
            continue
        _init_backward_state(
            state, (tile % columns) * TILE, (tile // columns) * TILE, rgb, depth, alpha, d_rgb, d_depth, d_alpha
        )
        for place in range(tile_starts[tile], tile_starts[tile] + visited[tile]):
            s = splats[tile_splats[place]]
            a, b, c = s[2], s[3], s[4]
            s_r, s_g, s_b, s_z, s_0, s_x, s_y, s_xx, s_xy, s_yy = _add_splat_backward(
                state, s[0], s[1], -_HALF * a, -b, -_HALF * c, s[5], s[6], s[7], s[8], s[9]
            )
            out = partials[pair_numbers[place]]
            out[0], out[1], out[2], out[3] = s_r, s_g, s_b, -s_0
            out[4], out[5] = a * s_x + b * s_y, b * s_x + c * s_y
            out[6], out[7], out[8], out[9] = _HALF * s_xx, s_xy, _HALF * s_yy, s_z
