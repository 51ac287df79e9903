"""Passes over the matrix that are made only where the device found that they are needed.

They wrap the kernels of `kernels`, whose arguments they share, and read from device memory what to
do. Where a pass is not needed, its programs end at once. The group is the whole matrix.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.elementwise import as_float32
from spectral_kernels.backends.gpu.triton.histograms import (
    BINS,
    CUT,
    LOW_BITS,
    LOW_MASK,
    THRESHOLD,
    TIES,
)
from spectral_kernels.backends.gpu.triton.kernels import (
    PACKED_LOW,
    bits_of,
    count_between,
    refine,
    scored_tile,
)
from spectral_kernels.reference import budget as bg

_NOT_FINITE = tl.constexpr(bg.FINITE_BINS << bg.LOW_BITS)
_PACKED_ONE = tl.constexpr(1 << PACKED_LOW)
#: Counts of segments that `find_tie` looks at in one turn.
SEGMENTS = 1024


@triton.jit
def refine_cut(
    src, values, integers, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`refine` of the bin that `solve` names, into values int64 (2^18,); nothing where it is -1."""
    cut = tl.load(integers + CUT)
    if cut >= 0:
        refine(
            src, values, cut.to(tl.int32), m, units, strip, left, right, b_weight, a_weight,
            row, column, UNIT, BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip


@triton.jit
def count_ties(
    src, table, integers, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr, WHOLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`count_between` of the threshold's bits, where its ties are cut; else nothing."""
    if tl.load(integers + TIES) > 0:
        bits = tl.load(integers + THRESHOLD)
        count_between(
            src, table, bits, bits, m, units, strip, left, right, b_weight, a_weight,
            row, column, UNIT, BASE, WHOLE_ROWS, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip


@triton.jit
def find_tie(
    src, table, integers, tie_stops, segments: tl.int64, tiles: tl.int64,
    m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr, WHOLE_ROWS: tl.constexpr, SEGMENTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """tie_stops: the flat index just after the last tie that is kept; one program.

    table int32 (segments,) is that of `count_ties`. Reads the table up to where the ties run out,
    then scores that one segment.
    """
    wanted, n = tl.load(integers + TIES), units * UNIT
    if wanted > 0:
        start = segments * 0
        at = tl.arange(0, SEGMENTS)
        ties = tl.load(table + start + at, mask=start + at < segments, other=0).to(tl.int64)
        # Where NaN took the places of ties there are fewer than wanted; the call is refused later.
        while (tl.sum(ties) < wanted) & (start + SEGMENTS < segments):
            wanted -= tl.sum(ties)
            start += SEGMENTS
            ties = tl.load(table + start + at, mask=start + at < segments, other=0).to(tl.int64)
        before = tl.cumsum(ties, axis=0) - ties
        chosen = tl.max(tl.where((before < wanted) & (ties > 0), at, 0))
        wanted -= tl.sum(tl.where(at == chosen, before, 0))
        segment = tl.minimum(start + chosen, segments - 1)
        if WHOLE_ROWS:
            first, last, j0 = segment * ROWS, tl.minimum(segment * ROWS + ROWS, m), segment * 0
        else:
            first, last, j0 = segment // tiles, segment // tiles + 1, segment % tiles * COLUMNS
        i = first + tl.arange(0, ROWS).to(tl.int64)
        _, _, s, offsets, inside = scored_tile(
            src, i, last, n, j0, 0, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        bits = tl.load(integers + THRESHOLD).to(tl.uint32)
        tie = tl.reshape((inside & (bits_of(s) == bits)).to(tl.int64), (ROWS * COLUMNS,))
        place = tl.reshape(tl.broadcast_to(offsets, (ROWS, COLUMNS)), (ROWS * COLUMNS,))
        hit = (tie > 0) & (tl.cumsum(tie, axis=0) == wanted)
        tl.store(tie_stops, tl.sum(tl.where(hit, place, 0)) + 1)


@triton.jit
def count_not_finite(
    src, found, laws, size: tl.int64, CONDITIONAL: tl.constexpr, ENTRIES: tl.constexpr
):
    """found int64 (1,) gets the number of entries added that are NaN or infinite as float32.

    CONDITIONAL: only where the law in laws float32 (1, 4) scales by 2^-100 or less, so that A / p
    may have overflowed. Moves one read of the matrix.
    """
    needed = True
    if CONDITIONAL:
        needed = tl.load(laws + 3) <= 2.0**-100
    if needed:
        count = tl.zeros((ENTRIES,), tl.int32)
        start = tl.program_id(0).to(tl.int64) * ENTRIES
        while start < size:
            at = start + tl.arange(0, ENTRIES)
            a = as_float32(tl.load(src + at, mask=at < size, other=0.0))
            count += (bits_of(tl.abs(a)) >= _NOT_FINITE).to(tl.int32)
            start += tl.num_programs(0).to(tl.int64) * ENTRIES
        bad = tl.sum(count)
        if bad > 0:
            tl.atomic_add(found, bad.to(tl.int64), sem="relaxed")


@triton.jit
def row_histogram(scores, table, n: tl.int64, COLUMNS: tl.constexpr):
    """Packed histograms int64 (rows, 8192) of bits int32 (rows, n); a program a row."""
    i = tl.program_id(0).to(tl.int64)
    j = n * 0
    while j < n:
        at = j + tl.arange(0, COLUMNS)
        bits = tl.load(scores + i * n + at, mask=at < n, other=0).to(tl.uint32, bitcast=True)
        packed = (bits & LOW_MASK).to(tl.int64) + _PACKED_ONE
        bin_of = table + i * BINS + (bits >> LOW_BITS)
        tl.atomic_add(bin_of, packed, mask=bits > 0, sem="relaxed")
        j += COLUMNS
