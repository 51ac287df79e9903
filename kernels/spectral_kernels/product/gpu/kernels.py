"""Triton kernels on a packed matrix: the product with few right-hand sides, and the dense matrix.

A program has one row and goes through it in tiles of BYTES bytes of bits, eight columns each. A
thread has whole bytes and takes their columns one after another: only the counts of bytes are
summed between threads. Every value and every bit is read once, and nothing dense is written. Places
of values are 32 bits wide, counted from where the tile's values start, which has 64.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005 (Triton takes no starred lists)
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl


@triton.jit
def byte_of(bits, start, width, BYTES: tl.constexpr):
    """A tile's bytes of bits (BYTES,), int32, where the values of each start, and how many there
    are in all.
    """
    at = start + tl.arange(0, BYTES)
    byte = tl.load(bits + at, mask=at < width, other=0).to(tl.int32)
    ones = byte - ((byte >> 1) & 0x55)
    ones = (ones & 0x33) + ((ones >> 2) & 0x33)
    ones = (ones + (ones >> 4)) & 15
    return byte, tl.cumsum(ones, axis=0) - ones, tl.sum(ones, axis=0)


@triton.jit
def eighths(x):
    """(..., 8) as eight tensors (...)."""
    x0, x1 = tl.split(tl.reshape(x, x.shape[:-1] + [4, 2]))
    x00, x10 = tl.split(tl.reshape(x0, x0.shape[:-1] + [2, 2]))
    x01, x11 = tl.split(tl.reshape(x1, x1.shape[:-1] + [2, 2]))
    a, e = tl.split(x00)
    c, g = tl.split(x10)
    b, f = tl.split(x01)
    d, h = tl.split(x11)
    return a, b, c, d, e, f, g, h


@triton.jit
def product(
    values, bits, offsets, x, y, m: tl.int64, width: tl.int32, sides: tl.int32,
    SIDES: tl.constexpr, BYTES: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """y (sides, m) = x (sides, 8 width) S^T, sums in float32, or float64 if DOUBLE; SIDES >= sides.

    Moves the values, a bit an entry, and x from the caches. x is multiplied where a value is
    stored: an infinity elsewhere does not show.
    """
    row = tl.program_id(0).to(tl.int64)
    own = values + tl.load(offsets + row)
    bits += row * width
    kind = tl.float64 if DOUBLE else tl.float32
    side = tl.arange(0, SIDES)
    total = tl.zeros((SIDES, BYTES), kind)
    start = width * 0  # a loop that Triton's interpreter takes
    while start < width:
        start = tl.multiple_of(start, BYTES)
        byte, place, count = byte_of(bits, start, width, BYTES)
        at = start + tl.arange(0, BYTES)
        here = (side < sides)[:, None, None] & (at < width)[None, :, None]
        column = at[:, None] * 8 + tl.arange(0, 8)[None, :]
        where = side[:, None, None] * (width * 8) + column[None, :, :]
        others = eighths(tl.load(x + where, mask=here, other=0.0))
        for bit in tl.static_range(8):
            one = (byte >> bit) & 1
            value = tl.load(own + place, mask=one != 0, other=0.0).to(kind)
            added = total + value[None, :] * others[bit].to(kind)
            total = tl.where((one != 0)[None, :], added, total)
            place += one
        own += count
        start += BYTES
    found = tl.sum(total, axis=1)
    tl.store(y + side * m + row, found.to(y.dtype.element_ty), mask=side < sides)


@triton.jit
def unpack(
    values, bits, offsets, out, n: tl.int32, width: tl.int32, BYTES: tl.constexpr
):  # fmt: skip
    """out (m, n): the dense matrix. Moves the values, a bit an entry, and a write of the matrix."""
    row = tl.program_id(0).to(tl.int64)
    own = values + tl.load(offsets + row)
    bits += row * width
    out += row * n
    start = width * 0  # a loop that Triton's interpreter takes
    while start < width:
        start = tl.multiple_of(start, BYTES)
        byte, place, count = byte_of(bits, start, width, BYTES)
        column = (start + tl.arange(0, BYTES)) * 8
        for bit in tl.static_range(8):
            one = (byte >> bit) & 1
            value = tl.load(own + place, mask=one != 0, other=0.0)
            tl.store(out + column + bit, value, mask=column + bit < n)
            place += one
        own += count
        start += BYTES
