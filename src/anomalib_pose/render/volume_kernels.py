# SPDX-License-Identifier: Apache-2.0
"""Marching of rays through a sparse grid of voxels, and its gradient, compiled for the CPU."""

import math
from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import exp, kernel

BLOCK = 8
"""Vertices along the side of the blocks that are skipped as a whole when none of them is kept."""
OPAQUE = np.float32(1e-3)
"""A ray ends when so little light is left."""
EMPTY_DENSITY = np.float32(-8.0)
"""Raw density of vertices that are not kept."""

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


@kernel()
@no_type_check
def _through(raw, step):  # noqa: ANN001, ANN202
    """Light that a sample lets through: exp(-softplus(raw) step) = (1 + exp(raw))^-step."""
    risen = _ONE + exp(min(max(raw, np.float32(-80.0)), np.float32(80.0)))
    if step == _ONE:
        return _ONE / risen
    return exp(max(-step * np.float32(math.log(risen)), np.float32(-80.0)))


@kernel()
@no_type_check
def _sigmoid(x):  # noqa: ANN001, ANN202
    return _ONE / (_ONE + exp(min(max(-x, np.float32(-80.0)), np.float32(80.0))))


@kernel()
@no_type_check
def _box(origin, direction, shape):  # noqa: ANN001, ANN202
    """Where a ray enters and leaves the grid, in units of cells."""
    enter, leave = _ZERO, np.float32(1e30)
    for axis in range(3):
        top = np.float32(shape[axis] - 1)
        if abs(direction[axis]) < np.float32(1e-9):
            if origin[axis] < _ZERO or origin[axis] > top:
                leave = np.float32(-1.0)
            continue
        first = -origin[axis] / direction[axis]
        second = (top - origin[axis]) / direction[axis]
        enter = max(enter, min(first, second))
        leave = min(leave, max(first, second))
    return enter, leave


@kernel()
@no_type_check
def _steps_out_of_block(x, y, z, direction, step):  # noqa: ANN001, ANN202
    """Steps until the ray leaves the block of the point, at least one."""
    nearest = np.float32(1e30)
    for axis in range(3):
        value = x if axis == 0 else (y if axis == 1 else z)
        slope = direction[axis]
        if abs(slope) < np.float32(1e-9):
            continue
        low = np.float32((int(value) // BLOCK) * BLOCK)
        wall = low + np.float32(BLOCK) if slope > _ZERO else low
        nearest = min(nearest, (wall - value) / slope)
    return max(1, math.ceil(nearest / step))


@kernel()
@no_type_check
def _corners(x, y, z, table, slots, weights):  # noqa: ANN001, ANN202
    """Slots and weights of the eight vertices around a point; whether any of them is kept."""
    i = min(max(int(x), 0), table.shape[0] - 2)
    j = min(max(int(y), 0), table.shape[1] - 2)
    k = min(max(int(z), 0), table.shape[2] - 2)
    u, v, w = x - np.float32(i), y - np.float32(j), z - np.float32(k)
    kept = False
    number = 0
    for a in range(2):
        along_x = u if a else _ONE - u
        for b in range(2):
            along_y = along_x * (v if b else _ONE - v)
            for c in range(2):
                slot = table[i + a, j + b, k + c]
                slots[number] = slot
                weights[number] = along_y * (w if c else _ONE - w)
                kept = kept or slot >= 0
                number += 1
    return kept


@kernel()
@no_type_check
def _interpolated(values, channel, slots, weights, empty):  # noqa: ANN001, ANN202
    total = _ZERO
    for number in range(8):
        slot = slots[number]
        total += weights[number] * (values[slot, channel] if slot >= 0 else empty)
    return total


@kernel()
@no_type_check
def march(start, stop, origins, directions, jitter, table, blocks, values, step, colors, distance, alpha):  # noqa: ANN001, ANN201
    """Composite the rays ``start..stop``: colors (N, C), expected distance times alpha (N), alpha (N).

    Origins and directions are in cells from the first vertex, directions of length 1; ``step`` is in cells, ``jitter``
    (N) the first sample in steps; ``table`` holds each vertex's row of ``values`` or -1, ``blocks`` which blocks keep
    any. ``values`` (V, 1 + C) are raw density and raw colors.
    """
    slots, weights = np.empty(8, np.int32), np.empty(8, np.float32)
    for ray in range(start, stop):
        enter, leave = _box(origins[ray], directions[ray], table.shape)
        light = _ONE
        number = 0
        while light > OPAQUE:
            t = enter + (np.float32(number) + jitter[ray]) * step
            if t >= leave:
                break
            x = origins[ray, 0] + t * directions[ray, 0]
            y = origins[ray, 1] + t * directions[ray, 1]
            z = origins[ray, 2] + t * directions[ray, 2]
            if not blocks[int(x) // BLOCK, int(y) // BLOCK, int(z) // BLOCK]:
                number += _steps_out_of_block(x, y, z, directions[ray], step)
                continue
            number += 1
            if not _corners(x, y, z, table, slots, weights):
                continue
            through = _through(_interpolated(values, 0, slots, weights, EMPTY_DENSITY), step)
            weight = light * (_ONE - through)
            for channel in range(colors.shape[1]):
                colors[ray, channel] += weight * _sigmoid(_interpolated(values, channel + 1, slots, weights, _ZERO))
            distance[ray] += weight * t
            light *= through
        alpha[ray] = _ONE - light


@kernel()
@no_type_check
def march_backward(  # noqa: ANN201
    start, stop, origins, directions, jitter, table, blocks, values, step,  # noqa: ANN001
    colors, distance, alpha, d_colors, d_distance, d_alpha, d_values,  # noqa: ANN001
):  # fmt: skip
    """Add the gradient of the rays ``start..stop`` to ``d_values``; arguments as in ``march``, images as it left them.

    With weights ``w_i`` and what is behind sample i, ``behind_i = sum_{j > i} w_j q_j``, where ``q`` is a sample's
    contribution to the loss per weight, d loss / d tau_i = light_i through_i q_i - behind_i.
    """
    slots, weights = np.empty(8, np.int32), np.empty(8, np.float32)
    d_raw = np.empty(values.shape[1], np.float32)
    for ray in range(start, stop):
        total = d_distance[ray] * distance[ray] + d_alpha[ray] * alpha[ray]
        worth = abs(d_distance[ray]) + abs(d_alpha[ray])
        for channel in range(colors.shape[1]):
            total += d_colors[ray, channel] * colors[ray, channel]
            worth += abs(d_colors[ray, channel])
        if worth == _ZERO:
            continue
        enter, leave = _box(origins[ray], directions[ray], table.shape)
        light, done = _ONE, _ZERO
        number = 0
        while light > OPAQUE:
            t = enter + (np.float32(number) + jitter[ray]) * step
            if t >= leave:
                break
            x = origins[ray, 0] + t * directions[ray, 0]
            y = origins[ray, 1] + t * directions[ray, 1]
            z = origins[ray, 2] + t * directions[ray, 2]
            if not blocks[int(x) // BLOCK, int(y) // BLOCK, int(z) // BLOCK]:
                number += _steps_out_of_block(x, y, z, directions[ray], step)
                continue
            number += 1
            if not _corners(x, y, z, table, slots, weights):
                continue
            density = _interpolated(values, 0, slots, weights, EMPTY_DENSITY)
            through = _through(density, step)
            weight = light * (_ONE - through)
            each = d_distance[ray] * t + d_alpha[ray]
            for channel in range(colors.shape[1]):
                shade = _sigmoid(_interpolated(values, channel + 1, slots, weights, _ZERO))
                each += d_colors[ray, channel] * shade
                d_raw[channel + 1] = d_colors[ray, channel] * weight * shade * (_ONE - shade)
            done += weight * each
            light *= through
            d_raw[0] = (light * each - (total - done)) * step * _sigmoid(density)
            for corner in range(8):
                slot = slots[corner]
                if slot >= 0:
                    for channel in range(d_raw.shape[0]):
                        d_values[slot, channel] += weights[corner] * d_raw[channel]
