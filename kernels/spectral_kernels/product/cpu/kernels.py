"""The product on the CPU: rows dealt out to threads, each by one of the ways, all with equal bits.

Right-hand sides X lie one after another, `stride` apart, each 0 from column n to the next multiple
of 64. `words` are as in `vectors.row_products`; rows from `safe` on, whose vectors would be read
beyond the end of the values, are read from `last`, a copy of their values with room after it.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Numba gives its own.

import numpy as np
from numba import carray, prange

from spectral_kernels._numba import compiled
from spectral_kernels.product.cpu.plain import LANES, wide
from spectral_kernels.product.cpu.scalars import fused, pointer_of
from spectral_kernels.product.cpu.vectors import add_products, row_products, row_values

#: Rows and columns that are multiplied by four or eight right-hand sides at a time: what is read of
#: those (16 KiB), and the rows' sums, stay in the first cache.
_ROWS, _COLUMNS = 8, 512


@compiled
def load_sides(words, kind, n, X, stride):
    """Rows of n words as rows of X with zeros behind them; whether all of them are finite."""
    sides, zero = words.size // n, X.dtype.type(0)
    wrong = zero
    for r in range(sides):
        row, out = words[r * n : (r + 1) * n], X[r * stride : (r + 1) * stride]
        for j in range(n):
            value = X.dtype.type(wide(row[j], kind))
            out[j] = value
            wrong += value * zero
        out[n:] = zero
    return wrong == zero


@compiled
def tree(lanes, start):
    """The sum of 32 lanes, halves onto each other; -0 becomes 0. Overwrites them."""
    half = LANES // 2
    while half:
        for lane in range(start, start + half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[start] + lanes.dtype.type(0)


@compiled
def some_rows(words, shift, bits, offsets, n, table, X, stride, Y, sides, low, high):
    """Y (sides, m), flat, in rows low to high; a row's values start at its offset less shift."""
    m, width = offsets.size, (n + 7) // 8
    lanes, places = np.empty(8 * _ROWS * LANES, X.dtype), np.empty(_ROWS, np.int64)
    for start in range(low, high, _ROWS):
        stop, r = min(start + _ROWS, high), 0
        while r < sides:
            if sides - r >= 4:
                count = 8 if sides - r >= 8 else 4
                lanes[:] = 0
                for i in range(start, stop):
                    places[i - start] = offsets[i] - shift
                for j in range(0, n, _COLUMNS):
                    part, x = (min(_COLUMNS, n - j) + 7) // 8, X[r * stride + j :]
                    if count == 8:
                        for i in range(start, stop):
                            places[i - start] += add_products(
                                words, places[i - start], bits, i * width + j // 8, part, table,
                                x, stride, lanes, (i - start) * 8 * LANES, 8,
                            )  # fmt: skip
                    else:
                        for i in range(start, stop):
                            places[i - start] += add_products(
                                words, places[i - start], bits, i * width + j // 8, part, table,
                                x, stride, lanes, (i - start) * 8 * LANES, 4,
                            )  # fmt: skip
                for i in range(start, stop):
                    for side in range(count):
                        Y[(r + side) * m + i] = tree(lanes, ((i - start) * 8 + side) * LANES)
                r += count
            elif sides - r >= 2:
                x = X[r * stride :]
                for i in range(start, stop):
                    row_products(
                        words, offsets[i] - shift, bits, i * width, width, table, x, stride,
                        Y, r * m + i, m, 2,
                    )  # fmt: skip
                r += 2
            else:
                x = X[r * stride :]
                for i in range(start, stop):
                    row_products(
                        words, offsets[i] - shift, bits, i * width, width, table, x, stride,
                        Y, r * m + i, m, 1,
                    )  # fmt: skip
                r += 1


@compiled
def rows_product(words, last, safe, bits, offsets, n, table, X, stride, Y, sides, low, high):
    """Y in rows low to high."""
    middle = min(max(low, safe), high)
    some_rows(words, 0, bits, offsets, n, table, X, stride, Y, sides, low, middle)
    if middle < high:
        shift = offsets[safe]
        some_rows(last, shift, bits, offsets, n, table, X, stride, Y, sides, middle, high)


@compiled
def load_at(address, like, kind, n, X, stride, sides):
    """`load_sides` of the sides x n words at an address; `like` is an array of such words."""
    return load_sides(carray(pointer_of(address, like), sides * n), kind, n, X, stride)


@compiled
def product(
    address, like, kind, words, last, safe, bits, offsets, n, table, X, stride, Y, sides
):  # fmt: skip
    """`load_at`, then `rows_product` of all rows if all of x is finite; whether it is.

    One call does it all, with x by its address: a call, and each array, cost microseconds.
    """
    finite = load_at(address, like, kind, n, X, stride, sides)
    if finite:
        high = offsets.size
        rows_product(words, last, safe, bits, offsets, n, table, X, stride, Y, sides, 0, high)
    return finite


@compiled(parallel=True)
def shared_product(
    address, like, kind, words, last, safe, bits, offsets, n, table, X, stride, Y, sides, tasks
):
    """`product` with the rows cut into so many tasks, which threads share."""
    finite = load_at(address, like, kind, n, X, stride, sides)
    if finite:
        m = offsets.size
        for task in prange(tasks):
            low, high = task * m // tasks, (task + 1) * m // tasks
            rows_product(words, last, safe, bits, offsets, n, table, X, stride, Y, sides, low, high)
    return finite


@compiled(parallel=True)
def decode(words, last, safe, bits, offsets, n, table, out, stride, low, high, tasks):
    """out: rows low to high, dense, stride apart; each 0 from column n to a multiple of 64."""
    width, count = (n + 7) // 8, high - low
    for task in prange(tasks):
        for i in range(low + task * count // tasks, low + (task + 1) * count // tasks):
            to = (i - low) * stride
            if i < safe:
                row_values(words, offsets[i], bits, i * width, width, table, out, to)
            else:
                at = offsets[i] - offsets[safe]
                row_values(last, at, bits, i * width, width, table, out, to)


@compiled
def column_rows(words, kind, columns, offsets, X, stride, Y, sides, low, high):
    """Y in rows low to high, one stored value after another; words uint16, uint32 or uint64."""
    m = offsets.size
    lanes = np.empty(LANES, X.dtype)
    mask = np.uint64(LANES - 1)
    for i in range(low, high):
        start, stop = offsets[i], offsets[i + 1] if i + 1 < m else words.size
        row, where = words[start:stop], columns[start:stop]
        for r in range(sides):
            x = X[r * stride : (r + 1) * stride]
            lanes[:] = 0
            for k in range(row.size):
                column = np.uint64(where[k])
                lane = column & mask
                lanes[lane] = fused(wide(row[k], kind), x[column], lanes[lane])
            Y[r * m + i] = tree(lanes, 0)


@compiled
def by_columns(address, like, kind, n, words, stored, columns, offsets, X, stride, Y, sides):
    """`load_at`, then `column_rows` of all rows; `stored` says what the words are."""
    load_at(address, like, kind, n, X, stride, sides)
    column_rows(words, stored, columns, offsets, X, stride, Y, sides, 0, offsets.size)


@compiled(parallel=True)
def shared_by_columns(
    address, like, kind, n, words, stored, columns, offsets, X, stride, Y, sides, tasks
):
    """`by_columns` with the rows cut into so many tasks, which threads share."""
    load_at(address, like, kind, n, X, stride, sides)
    m = offsets.size
    for task in prange(tasks):
        low, high = task * m // tasks, (task + 1) * m // tasks
        column_rows(words, stored, columns, offsets, X, stride, Y, sides, low, high)


@compiled(parallel=True)
def columns_of(bits, offsets, n, nnz, tasks):
    """The column of each stored value, uint16."""
    m, width = offsets.size, (n + 7) // 8
    columns = np.empty(nnz, np.uint16)
    for task in prange(tasks):
        for i in range(task * m // tasks, (task + 1) * m // tasks):
            at = offsets[i]
            for k in range(width):
                byte = bits[i * width + k]
                column = 8 * k
                while byte:
                    if byte & np.uint8(1):
                        columns[at] = column
                        at += 1
                    byte >>= np.uint8(1)
                    column += 1
    return columns
