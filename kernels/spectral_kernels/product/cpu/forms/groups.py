"""A matrix by the columns of N values in every M: the bits of a row are made as it is multiplied.

`positions` are uint8, `row_bytes` a row; the columns of eight columns' values take `code` bits, of
which `table` makes a byte of the bit mask. Each row has `each` values.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Numba gives its own.

import numpy as np
from numba import prange

from spectral_kernels._numba import compiled
from spectral_kernels.product.cpu.kernels import load_at
from spectral_kernels.product.cpu.vectors import row_products


@compiled(inline="always")
def row_bits(positions, start, code, table, bits, to, count):
    """`count` bytes of a row's bits into `bits` from `to` on; its positions begin at `start`."""
    mask, at = np.uint32((1 << code) - 1), 0
    for k in range(count):
        byte, shift = start + (at >> 3), at & 7
        word = np.uint32(positions[byte])
        if shift + code > 8:
            word |= np.uint32(positions[byte + 1]) << np.uint32(8)
        bits[to + k] = table[word >> np.uint32(shift) & mask]
        at += code


@compiled(parallel=True)
def all_bits(positions, row_bytes, code, table, m, width, bits, tasks):
    """The bit mask uint8 (m, width), flat."""
    for task in prange(tasks):
        for i in range(task * m // tasks, (task + 1) * m // tasks):
            row_bits(positions, i * row_bytes, code, table, bits, i * width, width)


@compiled
def some_rows(
    words, last, safe, positions, row_bytes, code, table, each, n, lanes, X, stride, Y, sides, m,
    low, high,
):  # fmt: skip
    """Y (sides, m), flat, in rows low to high; `lanes` is the table of `vectors.row_products`.

    Rows from `safe` on, whose vectors would be read beyond the end of the values, are read from
    `last`, a copy of their values with room after it.
    """
    width = n // 8
    bits = np.empty(width, np.uint8)
    for i in range(low, high):
        row_bits(positions, i * row_bytes, code, table, bits, 0, width)
        source, at = (words, i * each) if i < safe else (last, (i - safe) * each)
        r = 0
        while r < sides:
            x = X[r * stride :]
            if sides - r >= 2:
                row_products(source, at, bits, 0, width, lanes, x, stride, Y, r * m + i, m, 2)
                r += 2
            else:
                row_products(source, at, bits, 0, width, lanes, x, stride, Y, r * m + i, m, 1)
                r += 1


@compiled
def product(
    address, like, kind, words, last, safe, positions, row_bytes, code, table, each, n, lanes, X,
    stride, Y, sides, m,
):  # fmt: skip
    """Y of the sides x n words at an address, if all of them are finite; whether they are."""
    finite = load_at(address, like, kind, n, X, stride, sides)
    if finite:
        some_rows(
            words, last, safe, positions, row_bytes, code, table, each, n, lanes, X, stride, Y,
            sides, m, 0, m,
        )  # fmt: skip
    return finite


@compiled(parallel=True)
def shared_product(
    address, like, kind, words, last, safe, positions, row_bytes, code, table, each, n, lanes, X,
    stride, Y, sides, m, tasks,
):  # fmt: skip
    """`product` with the rows cut into so many tasks, which threads share."""
    finite = load_at(address, like, kind, n, X, stride, sides)
    if finite:
        for task in prange(tasks):
            some_rows(
                words, last, safe, positions, row_bytes, code, table, each, n, lanes, X, stride, Y,
                sides, m, task * m // tasks, (task + 1) * m // tasks,
            )  # fmt: skip
    return finite
