"""Triton kernels on a packed matrix: the product with few right-hand sides, and the dense matrix.

A program has one row and goes through it in tiles of COLUMNS. A tile's bits are read as bytes; a
running count of the ones says where each column's value stands, so every value and every bit is
read once, and nothing dense is written. Offsets into values and matrix have 64 bits.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl


@triton.jit
def tile_of(values, bits, at, row, n, width, start, COLUMNS: tl.constexpr):
    """Values (0 where none is stored) and bits of columns start.. of a row, and how many ones.

    at: where the first value of the tile stands, int64.
    """
    column = start + tl.arange(0, COLUMNS)
    inside = column < n
    byte = tl.load(bits + row * width + (column >> 3), mask=inside, other=0).to(tl.int32)
    one = (byte >> (column & 7)) & 1
    place = at + (tl.cumsum(one, axis=0) - one)
    value = tl.load(values + place, mask=one != 0, other=0.0)
    return value, one, tl.sum(one, axis=0)


@triton.jit
def product(
    values, bits, offsets, x, y, m: tl.int64, n: tl.int32, width: tl.int64, sides: tl.int32,
    SIDES: tl.constexpr, COLUMNS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """y (sides, m) = x (sides, n) S^T, sums in float32, or float64 if DOUBLE; SIDES >= sides.

    Moves the values, a bit an entry, and x from the caches.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.load(offsets + row)
    side = tl.arange(0, SIDES)
    total = tl.zeros((SIDES,), tl.float64 if DOUBLE else tl.float32)
    start = n * 0
    while start < n:
        value, one, count = tile_of(values, bits, at, row, n, width, start, COLUMNS)
        at += count
        column = start + tl.arange(0, COLUMNS)
        stored = (side < sides)[:, None] & (one != 0)[None, :]
        other = tl.load(x + side[:, None] * n + column[None, :], mask=stored, other=0.0)
        total += tl.sum(value.to(total.dtype)[None, :] * other.to(total.dtype), axis=1)
        start += COLUMNS
    tl.store(y + side * m + row, total.to(y.dtype.element_ty), mask=side < sides)


@triton.jit
def unpack(
    values, bits, offsets, out, n: tl.int32, width: tl.int64, COLUMNS: tl.constexpr
):  # fmt: skip
    """out (m, n): the dense matrix. Moves the values, a bit an entry, and a write of the matrix."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.load(offsets + row)
    start = n * 0
    while start < n:
        value, _, count = tile_of(values, bits, at, row, n, width, start, COLUMNS)
        at += count
        column = start + tl.arange(0, COLUMNS)
        tl.store(out + row * n + column, value, mask=column < n)
        start += COLUMNS
