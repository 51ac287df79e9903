"""The product on the CPU: rows dealt out to threads, by column (`vectors`) or by stored value.

For the first, right-hand sides X lie one after another, `stride` apart, each 0 from column n to
the next multiple of 64. `words` are as in `vectors.row_products`; rows from `safe` on, whose
vectors would be read beyond the end of the values, are read from `last`, a copy of their values
with room after it.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Numba gives its own.

from numba import carray, prange

from spectral_kernels._numba import compiled
from spectral_kernels.product.cpu.plain import wide
from spectral_kernels.product.cpu.scalars import pointer_of
from spectral_kernels.product.cpu.stored import side_by_side, stored_rows
from spectral_kernels.product.cpu.vectors import row_products, row_values


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
def some_rows(words, shift, bits, offsets, n, table, X, stride, Y, sides, low, high):
    """Y (sides, m), flat, in rows low to high; a row's values start at its offset less shift."""
    m, width, r = offsets.size, (n + 7) // 8, 0
    while r < sides:
        x = X[r * stride :]
        if sides - r >= 2:
            for i in range(low, high):
                row_products(
                    words, offsets[i] - shift, bits, i * width, width, table, x, stride,
                    Y, r * m + i, m, 2,
                )  # fmt: skip
            r += 2
        else:
            for i in range(low, high):
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
def side_by_side_at(address, like, kind, n, sides, width, X):
    """`side_by_side` of the sides x n words at an address."""
    side_by_side(carray(pointer_of(address, like), sides * n), kind, n, sides, width, X)


@compiled
def by_stored(
    address, like, kind, words, stored, bits, offsets, n, places, width, X, Y, sides
):  # fmt: skip
    """`stored_rows` of all rows; `stored` says what 16-bit words are, `kind` what those of x."""
    side_by_side_at(address, like, kind, n, sides, width, X)
    high = offsets.size
    stored_rows(words, stored, bits, offsets, n, places, X, Y, sides, width, 0, high)


@compiled(parallel=True)
def shared_by_stored(
    address, like, kind, words, stored, bits, offsets, n, places, width, X, Y, sides, tasks
):
    """`by_stored` with the rows cut into so many tasks, which threads share."""
    side_by_side_at(address, like, kind, n, sides, width, X)
    m = offsets.size
    for task in prange(tasks):
        low, high = task * m // tasks, (task + 1) * m // tasks
        stored_rows(words, stored, bits, offsets, n, places, X, Y, sides, width, low, high)
