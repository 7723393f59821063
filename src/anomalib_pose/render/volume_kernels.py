# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of ray marching through a sparse voxel grid, and of its gradient."""

import math
from typing import no_type_check

import numpy as np

from anomalib_pose.render.compiled import exp, kernel

BLOCK = 8
"""Vertices along a side of a block; rays skip blocks without occupied vertices."""
OPAQUE = np.float32(1e-3)
"""Transmittance at which a ray ends."""
EMPTY_DENSITY = np.float32(-8.0)
"""Raw density of vertices that are not occupied."""

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


@kernel()
@no_type_check
def _transmitted(raw, step):  # noqa: ANN001, ANN202
    """Compute the transmittance of a sample: exp(-softplus(raw) step) = (1 + exp(raw))^-step."""
    exponential = _ONE + exp(min(max(raw, np.float32(-80.0)), np.float32(80.0)))
    if step == _ONE:
        return _ONE / exponential
    return exp(max(-step * np.float32(math.log(exponential)), np.float32(-80.0)))


@kernel()
@no_type_check
def _sigmoid(x):  # noqa: ANN001, ANN202
    """Compute the logistic function."""
    return _ONE / (_ONE + exp(min(max(-x, np.float32(-80.0)), np.float32(80.0))))


@kernel()
@no_type_check
def _grid_interval(origin, direction, shape):  # noqa: ANN001, ANN202
    """Return the distances, in cells, at which a ray enters and leaves the grid; exit < entry if it misses the grid."""
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
    """Return the number of steps, at least one, until the ray leaves the block of a point."""
    nearest = np.float32(1e30)
    for axis in range(3):
        value = x if axis == 0 else (y if axis == 1 else z)
        slope = direction[axis]
        if abs(slope) < np.float32(1e-9):
            continue
        low = np.float32((int(value) // BLOCK) * BLOCK)
        boundary = low + np.float32(BLOCK) if slope > _ZERO else low
        nearest = min(nearest, (boundary - value) / slope)
    return max(1, math.ceil(nearest / step))


@kernel()
@no_type_check
def _cell_vertices(x, y, z, table, slots, weights):  # noqa: ANN001, ANN202
    """Write rows of ``values`` and weights of the eight vertices around a point; return whether one is occupied."""
    i = min(max(int(x), 0), table.shape[0] - 2)
    j = min(max(int(y), 0), table.shape[1] - 2)
    k = min(max(int(z), 0), table.shape[2] - 2)
    u, v, w = x - np.float32(i), y - np.float32(j), z - np.float32(k)
    occupied = False
    number = 0
    for a in range(2):
        weight_x = u if a else _ONE - u
        for b in range(2):
            weight_xy = weight_x * (v if b else _ONE - v)
            for c in range(2):
                slot = table[i + a, j + b, k + c]
                slots[number] = slot
                weights[number] = weight_xy * (w if c else _ONE - w)
                occupied = occupied or slot >= 0
                number += 1
    return occupied


@kernel()
@no_type_check
def _interpolate(values, channel, slots, weights, empty):  # noqa: ANN001, ANN202
    """Interpolate a channel between the eight vertices; vertices without a row have the value ``empty``."""
    total = _ZERO
    for number in range(8):
        slot = slots[number]
        total += weights[number] * (values[slot, channel] if slot >= 0 else empty)
    return total


@kernel()
@no_type_check
def march(start, stop, origins, directions, jitter, table, blocks, values, step, colors, distance, alpha):  # noqa: ANN001, ANN201
    """Render rays ``start..stop``: colors (N, C), expected distance times alpha (N,), alpha (N,).

    Origins (N, 3) are in cells from the first vertex, directions (N, 3) are unit vectors. ``step`` is the distance of
    samples in cells, ``jitter`` (N,) the position of the first sample in steps. ``table`` (X, Y, Z) holds each vertex's
    row of ``values``, or -1; ``blocks`` marks the blocks with occupied vertices. ``values`` (V, 1 + C) are raw density
    and raw colors.
    """
    slots, weights = np.empty(8, np.int32), np.empty(8, np.float32)
    for ray in range(start, stop):
        enter, leave = _grid_interval(origins[ray], directions[ray], table.shape)
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
            if not _cell_vertices(x, y, z, table, slots, weights):
                continue
            transmitted = _transmitted(_interpolate(values, 0, slots, weights, EMPTY_DENSITY), step)
            weight = light * (_ONE - transmitted)
            for channel in range(colors.shape[1]):
                colors[ray, channel] += weight * _sigmoid(_interpolate(values, channel + 1, slots, weights, _ZERO))
            distance[ray] += weight * t
            light *= transmitted
        alpha[ray] = _ONE - light


@kernel()
@no_type_check
def march_backward(  # noqa: ANN201
    start, stop, origins, directions, jitter, table, blocks, values, step,  # noqa: ANN001
    colors, distance, alpha, d_colors, d_distance, d_alpha, d_values,  # noqa: ANN001
):  # fmt: skip
    """Add the gradient of rays ``start..stop`` to ``d_values``; other arguments are those of ``march`` after its run.

    ``q_i`` is the contribution of sample i to the loss per weight. With weights ``w_i`` and
    ``behind_i = sum_{j > i} w_j q_j``, d loss / d tau_i = light_i transmitted_i q_i - behind_i.
    """
    slots, weights = np.empty(8, np.int32), np.empty(8, np.float32)
    d_raw = np.empty(values.shape[1], np.float32)
    for ray in range(start, stop):
        total = d_distance[ray] * distance[ray] + d_alpha[ray] * alpha[ray]
        magnitude = abs(d_distance[ray]) + abs(d_alpha[ray])
        for channel in range(colors.shape[1]):
            total += d_colors[ray, channel] * colors[ray, channel]
            magnitude += abs(d_colors[ray, channel])
        if magnitude == _ZERO:
            continue
        enter, leave = _grid_interval(origins[ray], directions[ray], table.shape)
        light, in_front = _ONE, _ZERO
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
            if not _cell_vertices(x, y, z, table, slots, weights):
                continue
            density = _interpolate(values, 0, slots, weights, EMPTY_DENSITY)
            transmitted = _transmitted(density, step)
            weight = light * (_ONE - transmitted)
            q = d_distance[ray] * t + d_alpha[ray]
            for channel in range(colors.shape[1]):
                shade = _sigmoid(_interpolate(values, channel + 1, slots, weights, _ZERO))
                q += d_colors[ray, channel] * shade
                d_raw[channel + 1] = d_colors[ray, channel] * weight * shade * (_ONE - shade)
            in_front += weight * q
            light *= transmitted
            d_raw[0] = (light * q - (total - in_front)) * step * _sigmoid(density)
            for corner in range(8):
                slot = slots[corner]
                if slot >= 0:
                    for channel in range(d_raw.shape[0]):
                        d_values[slot, channel] += weights[corner] * d_raw[channel]
