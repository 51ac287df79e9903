"""Triton kernels that pack a sparse matrix, or work on a packed mask; `packed` has their oracles.

A matrix (m, n) is row-major; offsets are 64-bit. Its number of columns (of entries, where rows do
not matter) is units * UNIT, so that Triton knows that UNIT divides it; see `kernels`.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.kernels import low_rank_tile, strip_of


@triton.jit
def is_nonzero(x):
    """1 where a loaded entry is not zero of either sign, else 0, int32; NaN is not zero."""
    if x.dtype.primitive_bitwidth == 16:
        magnitude = x.to(tl.uint16, bitcast=True) & 0x7FFF
    elif x.dtype.primitive_bitwidth == 32:
        magnitude = x.to(tl.uint32, bitcast=True) & 0x7FFFFFFF
    else:
        magnitude = x.to(tl.uint64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    return (magnitude != 0).to(tl.int32)


@triton.jit
def kept_bits(packed, entry, inside):
    """The bits, 1 or 0, of entries at flat indices of the matrix, int32."""
    byte = tl.load(packed + (entry >> 3), mask=inside, other=0).to(tl.int32)
    return (byte >> (entry & 7).to(tl.int32)) & 1


@triton.jit
def pack_bits(src, words, units: tl.int64, UNIT: tl.constexpr, WORDS: tl.constexpr):
    """words int32 (ceil(size / 32),), as bytes in memory the bits of `packed`; WORDS a program.

    Moves one read of the matrix, and a bit an entry.
    """
    size = units * UNIT
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS).to(tl.int64)
    place = tl.arange(0, 32)[None, :]
    entry = (word * 32)[:, None] + place
    x = tl.load(src + entry, mask=entry < size, other=0.0)
    tl.store(words + word, tl.sum(is_nonzero(x) << place, axis=1), mask=word * 32 < size)


@triton.jit
def keep_bits(src, packed, out, units: tl.int64, UNIT: tl.constexpr, TILE: tl.constexpr):
    """out = src where its bit is set, else 0. Moves a read, a write, and a bit an entry."""
    entry = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = entry < units * UNIT
    x = tl.load(src + entry, mask=inside, other=0.0)
    tl.store(out + entry, tl.where(kept_bits(packed, entry, inside) != 0, x, 0.0), mask=inside)


@triton.jit
def row_tile(src, i, j, n, COLUMNS: tl.constexpr):
    """Columns j.. of row i (0 outside), which they are, and 1 where they are not zero."""
    at = j + tl.arange(0, COLUMNS)
    x = tl.load(src + i * n + at, mask=at < n, other=0.0)
    return x, at, is_nonzero(x)


@triton.jit
def count_rows(src, counts, units: tl.int64, UNIT: tl.constexpr, COLUMNS: tl.constexpr):
    """counts int64 (m,): the entries of each row that are not zero; a program a row.

    Moves one read of the matrix.
    """
    n = units * UNIT
    i = tl.program_id(0).to(tl.int64)
    found = tl.zeros((COLUMNS,), tl.int32)
    j = n * 0
    while j < n:
        _, _, one = row_tile(src, i, j, n, COLUMNS)
        found += one
        j += COLUMNS
    tl.store(counts + i, tl.sum(found).to(tl.int64))


@triton.jit
def fill_rows(
    src, starts, columns, values, units: tl.int64, UNIT: tl.constexpr, COLUMNS: tl.constexpr
):
    """Columns (int32 or int64) and values of the nonzero entries of each row, from its start on.

    starts int64 (m + 1,). Moves one read of the matrix, and a write of what is kept. Nothing is
    written past the next row's start.
    """
    n = units * UNIT
    i = tl.program_id(0).to(tl.int64)
    to, stop = tl.load(starts + i), tl.load(starts + i + 1)
    j = n * 0
    while j < n:
        x, at, one = row_tile(src, i, j, n, COLUMNS)
        place = to + tl.cumsum(one, axis=0) - one
        mine = (one != 0) & (place < stop)
        tl.store(columns + place, at.to(columns.dtype.element_ty), mask=mine)
        tl.store(values + place, x, mask=mine)
        to += tl.sum(one)
        j += COLUMNS


@triton.jit
def masked_product(
    src, packed, out, m: tl.int64, units: tl.int64, strip: tl.int32, left, right, ridge: tl.float32,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = left @ right + ridge src on the mask, 0 elsewhere; src may be None.

    float32; the product is made tile by tile on the matrix units and never written whole. Moves
    one read and one write of a matrix, a bit an entry, and the factors. Arguments as in `kernels`.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    j = j0 + tl.arange(0, COLUMNS)
    inside_columns = j < n
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (i < last)[:, None] & inside_columns[None, :]
        value = low_rank_tile(
            left, right, i, i < last, j, inside_columns, n, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION
        )
        offsets = (i * n)[:, None] + j[None, :]
        if src is not None:
            value += ridge * tl.load(src + offsets, mask=inside, other=0.0)
        kept = kept_bits(packed, offsets, inside) != 0
        tl.store(out + offsets, tl.where(kept, value, 0.0), mask=inside)
        start += ROWS
