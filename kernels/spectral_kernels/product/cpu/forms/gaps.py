"""A matrix by its gaps: the zeros before each value, a byte each, 255 for "and more to come".

Entries are counted through all rows. A walk is at byte d of the gaps, has seen v values, and stands
at entry p. Walks start at any of some blocks of rows, whose `starts` (d, v, p) are found once. A
row's columns are written down a tile at a time, and then multiplied in the order of `oracle`, so
that the bits are those of a product by a bit mask.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Numba gives its own.

import numpy as np
from numba import prange

from spectral_kernels._numba import compiled
from spectral_kernels.product.cpu.forms.walk import MORE, add_tile, columns_of
from spectral_kernels.product.cpu.kernels import load_at, side_by_side_at
from spectral_kernels.product.cpu.stored import add_row
from spectral_kernels.product.oracle import LANES, SUMS, TILE


@compiled
def lengths(words):
    """How many words are not 0, and how many bytes their gaps take."""
    count, length, zeros, zero = 0, 0, 0, words.dtype.type(0)
    for i in range(words.size):
        if words[i] == zero:
            zeros += 1
        else:
            count += 1
            length += zeros // MORE + 1
            zeros = 0
    return count, length + zeros // MORE


@compiled
def encode(words, values, deltas):
    """The words that are not 0, and their gaps; both arrays are as long as `lengths` says."""
    zeros, at, d, zero = 0, 0, 0, words.dtype.type(0)
    for i in range(words.size):
        if words[i] == zero:
            zeros += 1
        else:
            while zeros >= MORE:
                deltas[d] = MORE
                d += 1
                zeros -= MORE
            deltas[d], values[at], zeros = zeros, words[i], 0
            d += 1
            at += 1
    while zeros >= MORE:
        deltas[d] = MORE
        d += 1
        zeros -= MORE


@compiled
def starts_of(deltas, count, m, n, step):
    """Where each `step` rows start, int64 (ceil(m / step), 3), and whether the gaps are those of
    `count` values among m n entries, with no byte too many or too few behind the last.
    """
    blocks, size = (m + step - 1) // step, m * n
    starts = np.empty((blocks, 3), np.int64)
    b, v, p = 0, 0, 0
    for d in range(deltas.size):
        gap = np.int64(deltas[d])
        if p > size:
            return starts, False
        while b < blocks and p + gap >= b * step * n:
            starts[b, 0], starts[b, 1], starts[b, 2] = d, v, p
            b += 1
        p += gap
        if gap != MORE:
            if p >= size:
                return starts, False
            v += 1
            p += 1
    while b < blocks:
        starts[b, 0], starts[b, 1], starts[b, 2] = deltas.size, v, p
        b += 1
    return starts, v == count and p <= size and size - p < MORE


@compiled
def rows_by_column(words, kind, deltas, starts, step, n, X, stride, Y, sides, m, block):
    """Y (sides, m), flat, in the rows of a block, few sides: 32 sums a row, by column.

    words: float32, float64, or uint16 of the `kind`.
    """
    d, v, p = starts[block, 0], starts[block, 1], starts[block, 2]
    columns, room = np.empty(TILE + 16, np.uint16), np.empty(TILE + 15, X.dtype)
    lanes = np.empty(sides * LANES, X.dtype)
    for i in range(block * step, min(m, (block + 1) * step)):
        lanes[:] = 0
        for j in range(0, n, TILE):
            first = i * n + j
            count, d, p = columns_of(deltas, d, p, first, first + min(TILE, n - j), columns)
            add_tile(words, kind, v, count, room, columns, X, j, stride, sides, lanes)
            v += count
        for r in range(sides):
            half = LANES // 2
            while half:
                for lane in range(r * LANES, r * LANES + half):
                    lanes[lane] += lanes[lane + half]
                half //= 2
            Y[r * m + i] = lanes[r * LANES] + X.dtype.type(0)  # turns -0 into 0


@compiled
def rows_by_stored(words, kind, deltas, starts, step, n, X, Y, sides, width, m, block):
    """The same for several sides that lie side by side: four sums a row, by stored value."""
    columns, room = np.empty(TILE + 16, np.uint16), np.empty(TILE + 15, X.dtype)
    sums = np.empty(SUMS * width, X.dtype)
    for side in range(0, sides, width):
        d, v, p = starts[block, 0], starts[block, 1], starts[block, 2]
        for i in range(block * step, min(m, (block + 1) * step)):
            sums[:] = 0
            for j in range(0, n, TILE):
                first, x = i * n + j, side * n + j * width
                count, d, p = columns_of(deltas, d, p, first, first + min(TILE, n - j), columns)
                if width == 8:
                    add_row(words, kind, v, count, room, columns, X, x, sums, 0, 8)
                else:
                    add_row(words, kind, v, count, room, columns, X, x, sums, 0, 16)
                v += count
            for r in range(min(width, sides - side)):
                even = sums[r] + sums[r + 2 * width]
                odd = sums[r + width] + sums[r + 3 * width]
                Y[(side + r) * m + i] = even + odd + X.dtype.type(0)


@compiled
def by_column(address, like, kind, words, stored, deltas, starts, step, n, X, stride, Y, sides, m):
    """Y (sides, m), flat, of the sides x n words at an address; `stored` says what the 16-bit words
    of values are, `kind` what those of x.
    """
    load_at(address, like, kind, n, X, stride, sides)
    for block in range(starts.shape[0]):
        rows_by_column(words, stored, deltas, starts, step, n, X, stride, Y, sides, m, block)


@compiled(parallel=True)
def shared_by_column(
    address, like, kind, words, stored, deltas, starts, step, n, X, stride, Y, sides, m, tasks
):
    """`by_column` with the blocks cut into so many tasks, which threads share."""
    load_at(address, like, kind, n, X, stride, sides)
    blocks = starts.shape[0]
    for task in prange(tasks):
        for block in range(task * blocks // tasks, (task + 1) * blocks // tasks):
            rows_by_column(words, stored, deltas, starts, step, n, X, stride, Y, sides, m, block)


@compiled
def by_stored(address, like, kind, words, stored, deltas, starts, step, n, X, width, Y, sides, m):
    """`by_column` for several sides, `width` (8 or 16) of them side by side."""
    side_by_side_at(address, like, kind, n, sides, width, X)
    for block in range(starts.shape[0]):
        rows_by_stored(words, stored, deltas, starts, step, n, X, Y, sides, width, m, block)


@compiled(parallel=True)
def shared_by_stored(
    address, like, kind, words, stored, deltas, starts, step, n, X, width, Y, sides, m, tasks
):
    """`by_stored` with the blocks cut into so many tasks, which threads share."""
    side_by_side_at(address, like, kind, n, sides, width, X)
    blocks = starts.shape[0]
    for task in prange(tasks):
        for block in range(task * blocks // tasks, (task + 1) * blocks // tasks):
            rows_by_stored(words, stored, deltas, starts, step, n, X, Y, sides, width, m, block)


@compiled(parallel=True)
def dense_rows(words, deltas, starts, step, n, wanted, out, tasks):
    """out: the rows `wanted`, one after another; 0 where there is no value."""
    count = wanted.size
    for task in prange(tasks):
        columns = np.empty(TILE + 16, np.uint16)
        at, stop = np.int64(-1), np.int64(-1)  # the row that the walk is at, and its block's end
        d, v, p = np.int64(0), np.int64(0), np.int64(0)
        for k in range(task * count // tasks, (task + 1) * count // tasks):
            row = wanted[k]
            if row < at or row >= stop:
                block = row // step
                d, v, p = starts[block, 0], starts[block, 1], starts[block, 2]
                at, stop = block * step, (block + 1) * step
            out[k * n : (k + 1) * n] = 0
            while at <= row:
                for j in range(0, n, TILE):
                    first = at * n + j
                    found, d, p = columns_of(deltas, d, p, first, first + min(TILE, n - j), columns)
                    if at == row:
                        for c in range(found):
                            out[k * n + j + columns[c]] = words[v + c]
                    v += found
                at += 1
