"""Triton kernels of the row group: the threshold and the L1 norm of each row."""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.elementwise import as_float32
from spectral_kernels.reference import budget as bg

_NOT_FINITE = tl.constexpr(bg.FINITE_BINS << bg.LOW_BITS)


@triton.jit
def row_bits(row, j, n, COLUMNS: tl.constexpr):
    """A tile of a row of bits from column j on, 0 outside, and what lies inside."""
    at = j + tl.arange(0, COLUMNS)
    return tl.load(row + at, mask=at < n, other=0).to(tl.uint32, bitcast=True), at < n


@triton.jit
def count_from(row, n, lowest, COLUMNS: tl.constexpr):
    """How many bits of a row are `lowest` (not 0) or more."""
    found = tl.zeros((COLUMNS,), tl.int32)
    j = n * 0
    while j < n:
        bits, _ = row_bits(row, j, n, COLUMNS)
        found += (bits >= lowest).to(tl.int32)
        j += COLUMNS
    return tl.sum(found)


@triton.jit(do_not_specialize=["budget"])
def row_threshold(
    scores, thresholds, tie_stops, nonfinite, n: tl.int64, budget: tl.int64, COLUMNS: tl.constexpr
):
    """The budget-th largest of a row of bits, and the column just after its last kept tie.

    scores int32 (m, n); thresholds int32, tie_stops int64 and nonfinite int32 (how many scores are
    infinite or NaN), (m,) each; a program a row. Bisection, bit by bit: 31 readings of a row, which
    the cache holds. The threshold is 0 where fewer than `budget` scores are positive.
    """
    i = tl.program_id(0).to(tl.int64)
    row = scores + i * n
    threshold, bit = tl.cast(0, tl.uint32), tl.cast(1 << 30, tl.uint32)
    for _ in range(31):
        enough = count_from(row, n, threshold | bit, COLUMNS) >= budget
        threshold = tl.where(enough, threshold | bit, threshold)
        bit = bit >> 1
    wanted = budget - count_from(row, n, threshold + 1, COLUMNS)
    # The wanted tie stands where the running count of ties first gets there.
    before, ties, j = n * 0, n * 0, n * 0
    while j < n:
        bits, inside = row_bits(row, j, n, COLUMNS)
        tie = (inside & (bits == threshold)).to(tl.int32)
        running = ties + tl.cumsum(tie, axis=0)
        before += tl.sum((inside & (running < wanted)).to(tl.int32))
        ties += tl.sum(tie)
        j += COLUMNS
    tl.store(thresholds + i, threshold.to(tl.int32, bitcast=True))
    tl.store(tie_stops + i, tl.minimum(before + 1, n))
    tl.store(nonfinite + i, count_from(row, n, tl.cast(_NOT_FINITE, tl.uint32), COLUMNS))


@triton.jit
def row_entries(src, i, m, j, n, COLUMNS: tl.constexpr):
    """|A| of rows i (ROWS,) and COLUMNS columns from j on, float32, 0 outside the matrix."""
    at = j + tl.arange(0, COLUMNS)
    inside = (i < m)[:, None] & (at < n)[None, :]
    return tl.abs(as_float32(tl.load(src + (i * n)[:, None] + at[None, :], mask=inside, other=0.0)))


@triton.jit
def row_l1(
    src, sums, m: tl.int64, units: tl.int64, places: tl.int32,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """sums float64 (m,): ||A_i||_1, summed in integers as `rows.row_l1` does; ROWS rows a program.

    Moves two reads of the matrix, the second from the cache. `places` is `fixed_point_shift(n, 0)`.
    """
    n = units * UNIT
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    largest = tl.zeros((ROWS,), tl.float32)
    j = n * 0
    while j < n:
        largest = tl.maximum(largest, tl.max(row_entries(src, i, m, j, n, COLUMNS), axis=1))
        j += COLUMNS
    # As float64 even the least subnormal has an exponent field: 1022 more than frexp's exponent.
    field = (largest.to(tl.float64).to(tl.uint64, bitcast=True) >> 52).to(tl.int64) & 0x7FF
    shift = tl.where(largest > 0, places - (field - 1022), 0)
    factor = ((shift + 1023) << 52).to(tl.float64, bitcast=True)
    inverse = ((1023 - shift) << 52).to(tl.float64, bitcast=True)
    total = tl.zeros((ROWS,), tl.int64)
    j = n * 0
    while j < n:
        a = row_entries(src, i, m, j, n, COLUMNS).to(tl.float64)
        total += tl.sum((a * factor[:, None]).to(tl.int64), axis=1)
        j += COLUMNS
    tl.store(sums + i, total.to(tl.float64) * inverse, mask=i < m)
