"""The Triton kernels. Each reads the matrix once; `sample` and `keep_largest` also write it once.

The (m, n) matrix is cut into tiles of ROWS x COLUMNS. A program owns a strip, `strip` rows of one
column of tiles (program_id(0) counts these columns, program_id(1) the strips), and walks down it.
Offsets are 64-bit. Arguments that kernels share:

src, out          the matrix, row-major, as a pointer
m, units, UNIT    its rows, and its columns n = units * UNIT: Triton then knows that UNIT divides n,
                  and loads and stores 128 bits at a time where it may
strip             rows to a program, a multiple of ROWS
left, right       (m, rank) and (rank, n) float32: B = left @ right, made tile by tile on the matrix
                  units, DEPTH columns of left at each of DEPTHS steps, with products of PRECISION;
                  rank is DEPTH * DEPTHS, what is short of it padded with zeros
b_weight, a_weight, row, column
                  the weights of MIXTURE; the vectors of the score, float32, or None
BASE, SHAPE       see `laws`
"""

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.elementwise import (
    as_float32,
    draws,
    probability,
    rescaled,
    score,
    where_kept,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Base

#: Bits that the sum of low bits takes in a packed count of the histogram; the rest is the count.
PACKED_LOW = 41
#: Entries that one copy of a packed histogram may see: sum of low bits < 2^40, count < 2^22.
PACKED_ENTRIES = 1 << 22

_MAGNITUDE = tl.constexpr(int(Base.MAGNITUDE))
_LOW_BITS, _LOW_MASK = tl.constexpr(bg.LOW_BITS), tl.constexpr(bg.LOW_MASK)
_BINS = tl.constexpr(bg.BINS)
_PACKED_ONE = tl.constexpr(1 << PACKED_LOW)


@triton.jit
def strip_of(m, units, strip, UNIT: tl.constexpr, COLUMNS: tl.constexpr):
    """(n, first column, first row, row after the last) of this program."""
    start = tl.program_id(1).to(tl.int64) * strip
    j0 = tl.program_id(0).to(tl.int64) * COLUMNS
    return units * UNIT, j0, start, tl.minimum(start + strip, m)


@triton.jit
def quad_sums(flags):
    """Sums of four neighbours each, which one thread holds: threads need not exchange anything."""
    return tl.sum(tl.reshape(flags.to(tl.int32), (flags.numel // 4, 4)), axis=1)


@triton.jit
def low_rank_tile(
    left, right, i, inside_rows, j, inside_columns, n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of B = left @ right, summed in float32."""
    B = tl.zeros((ROWS, COLUMNS), tl.float32)
    depth = tl.arange(0, DEPTH)
    for step in range(DEPTHS):
        k = step * DEPTH + depth
        some_left = tl.load(
            left + (i * (DEPTH * DEPTHS))[:, None] + k[None, :],
            mask=inside_rows[:, None], other=0.0,
        )  # fmt: skip
        some_right = tl.load(
            right + k.to(tl.int64)[:, None] * n + j[None, :],
            mask=inside_columns[None, :], other=0.0,
        )  # fmt: skip
        B = tl.dot(some_left, some_right, B, input_precision=PRECISION)
    return B


@triton.jit
def scored_tile(
    src, i, last, n, j0, first, left, right, b_weight, a_weight, row, column,
    BASE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Load the tile of rows i (ROWS,), up to `last`, and columns j0 + first.., up to n.

    Columns before j0 are left out: `first` may be negative. Returns (x, a, s, offsets, inside): the
    entries, the same as float32, their scores (0 outside the matrix), where they lie, and whether
    they do.
    """
    at = first + tl.arange(0, COLUMNS)
    # One comparison where there is only one to make, so that whole vectors share it.
    inside_columns = at < tl.minimum(n - j0, COLUMNS).to(tl.int32)
    if first != 0:
        inside_columns = inside_columns & (j0 + at >= 0)
    inside = tl.broadcast_to(inside_columns[None, :], (ROWS, COLUMNS))
    inside_rows = i < last
    if ROWS > 1:
        inside = inside & inside_rows[:, None]
    offsets = (i * n + j0)[:, None] + at[None, :]
    if BASE == _MAGNITUDE:
        x = tl.load(src + offsets, mask=inside, other=0.0)
        a = as_float32(x)
        s = score(a, a, b_weight, a_weight, BASE)
    else:
        b = low_rank_tile(
            left, right, i, inside_rows, j0 + at, inside_columns, n,
            ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        # Loaded before the product, the entries would hold registers through it.
        x = tl.load(src + offsets, mask=inside, other=0.0)
        a = as_float32(x)
        s = score(a, b, b_weight, a_weight, BASE)
    if column is not None:
        s = tl.abs(s * tl.load(column + j0 + at, mask=inside_columns, other=0.0)[None, :])
    if row is not None:
        s = tl.abs(s * tl.load(row + i, mask=inside_rows, other=0.0)[:, None])
    return x, a, s, offsets, inside


@triton.jit
def bits_of(s):
    """Scores as bits, which order as the scores do."""
    return s.to(tl.uint32, bitcast=True)


@triton.jit
def group_value(table, i, last, BY_ROW: tl.constexpr, STRIDE: tl.constexpr):
    """The value of a group: of each row (ROWS, 1), or of the tensor; tables have STRIDE columns."""
    if BY_ROW:
        value = tl.load(table + i * STRIDE, mask=i < last, other=0)[:, None]
    else:
        value = tl.load(table)
    return value


@triton.jit
def quads_of(quad_offset, j0, COLUMNS: tl.constexpr, BITS: tl.constexpr):
    """The quads (1, ..) of the stream of COLUMNS columns from j0 on, as `words` takes them."""
    # A thread stores 128 bits: of 16-bit entries, two quads.
    QUADS: tl.constexpr = 2 if BITS == 16 else 1
    first = (tl.cast(quad_offset, tl.int64) + j0 // 4).to(tl.uint32)
    return (first + tl.arange(0, COLUMNS // (4 * QUADS)).to(tl.uint32) * QUADS)[None, :]


@triton.jit
def law_of(laws, i, last, BY_ROW: tl.constexpr):
    """C, alpha, beta and scale of a group, see `group_value`."""
    return (
        group_value(laws, i, last, BY_ROW, 4), group_value(laws + 1, i, last, BY_ROW, 4),
        group_value(laws + 2, i, last, BY_ROW, 4), group_value(laws + 3, i, last, BY_ROW, 4),
    )  # fmt: skip


@triton.jit(do_not_specialize=["stream_id", "k0", "k1", "row_offset", "quad_offset"])
def sample(
    src, out, kept, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    laws, row_offset: tl.int64, quad_offset: tl.int64,
    stream_id: tl.uint32, k0: tl.uint32, k1: tl.uint32,
    UNIT: tl.constexpr, BASE: tl.constexpr, SHAPE: tl.constexpr,
    BY_ROW: tl.constexpr, RESCALE: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
    NVIDIA: tl.constexpr,
):  # fmt: skip
    """Score, law, draw and value in one pass: replaces scoring, comparing with a random matrix,
    dividing and masking, each of which would move the matrix.

    Moves one read and one write of the matrix. laws is float32 (groups, 4): C, alpha, beta, scale.
    The matrix lies at row `row_offset` and column 4 * quad_offset + SKIP of the stream; tiles start
    at whole quads. kept (1,) int64 gets the number of entries kept added. Equal to `oracle.sample`
    bit for bit, given the same B.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    quad = quads_of(quad_offset, j0, COLUMNS, src.dtype.element_ty.primitive_bitwidth)
    stream, k0, k1 = tl.cast(stream_id, tl.uint32), tl.cast(k0, tl.uint32), tl.cast(k1, tl.uint32)
    LIMITED: tl.constexpr = BASE == _MAGNITUDE and row is None and column is None
    if not BY_ROW:
        C, alpha, beta, scale = law_of(laws, start, last, BY_ROW)
    count = tl.zeros((ROWS * COLUMNS // 4,), tl.int32)
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        x, a, s, offsets, inside = scored_tile(
            src, i, last, n, j0, -SKIP, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        if BY_ROW:
            C, alpha, beta, scale = law_of(laws, i, last, BY_ROW)
        t = probability(s, C, alpha, beta, scale, SHAPE)
        u = draws((row_offset + i)[:, None], quad, stream, k0, k1, ROWS, COLUMNS)
        ahead = u - t
        value = rescaled(x, a, t, scale, LIMITED, NVIDIA) if RESCALE else x
        tl.store(out + offsets, where_kept(ahead, value, x.dtype, NVIDIA), mask=inside)
        count -= quad_sums(ahead >> 31)
        start += ROWS
    tl.atomic_add(kept, tl.sum(count).to(tl.int64), sem="relaxed")


@triton.jit
def keep_largest(
    src, out, kept, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    thresholds, tie_stops,
    UNIT: tl.constexpr, BASE: tl.constexpr, BY_ROW: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = src where the score is over its group's threshold, or ties with it early enough.

    Moves one read and one write of the matrix. thresholds int32 (groups,) are bits;
    tie_stops int64 (groups,) the index under which ties are kept: flat for a tensor, the column
    for a row. kept (1,) int64 gets the number of nonzero entries written added.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    count = tl.zeros((ROWS * COLUMNS // 4,), tl.int32)
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        x, a, s, offsets, inside = scored_tile(
            src, i, last, n, j0, 0, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        threshold = group_value(thresholds, i, last, BY_ROW, 1).to(tl.uint32, bitcast=True)
        stop = group_value(tie_stops, i, last, BY_ROW, 1)
        stop = stop - j0 if BY_ROW else stop - (i * n + j0)[:, None]
        # Ties before the stop are kept: there the comparison is >=, after it >.
        stop = tl.minimum(tl.maximum(stop, 0), COLUMNS).to(tl.int32)
        late = (tl.arange(0, COLUMNS)[None, :] >= stop).to(tl.uint32)
        keep = bits_of(s) >= threshold + late
        tl.store(out + offsets, tl.where(keep, x, 0.0), mask=inside)
        count += quad_sums(keep & (a != 0))
        start += ROWS
    tl.atomic_add(kept, tl.sum(count).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["copies"])
def histogram(
    src, table, copies: tl.int32, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Bin the scores by their 13 leading bits; zeros are left out.

    Moves one read of the matrix. Count and sum of low bits are packed in one integer, so that an
    entry costs one atomic: table (copies, 8192) int64 gets 2^PACKED_LOW + low added at its bin.
    Programs take the copies in turn; none may see more than PACKED_ENTRIES entries.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    program = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    counts = table + program % copies * _BINS
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        _, _, s, _, _ = scored_tile(
            src, i, last, n, j0, 0, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        bits = bits_of(s)
        packed = (bits & _LOW_MASK).to(tl.int64) + _PACKED_ONE
        tl.atomic_add(counts + (bits >> _LOW_BITS), packed, mask=bits > 0, sem="relaxed")
        start += ROWS


@triton.jit(do_not_specialize=["cut"])
def refine(
    src, table, cut: tl.int32, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """table int64 (2^18,): how many positive scores of bin `cut` have each value of the low bits.

    Moves one read of the matrix, and an atomic for each entry of the bin.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        _, _, s, _, _ = scored_tile(
            src, i, last, n, j0, 0, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        bits = bits_of(s)
        found = (bits > 0) & ((bits >> _LOW_BITS).to(tl.int32) == cut)
        one = found.to(tl.int64)
        tl.atomic_add(table + (bits & _LOW_MASK), one, mask=found, sem="relaxed")
        start += ROWS


@triton.jit(do_not_specialize=["lowest", "highest"])
def count_between(
    src, table, lowest: tl.uint32, highest: tl.uint32,
    m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr, WHOLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """How many bits of each segment lie in [lowest, highest].

    Moves one read of the matrix. A segment is one row of a tile, in table int32 (m, column tiles);
    WHOLE_ROWS, where a tile spans them, it is the tile, in table int32 (row tiles,). Either way
    the table is in the flat order of the matrix.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    lowest, highest = tl.cast(lowest, tl.uint32), tl.cast(highest, tl.uint32)
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        _, _, s, _, inside = scored_tile(
            src, i, last, n, j0, 0, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        bits = bits_of(s)
        found = (inside & (bits >= lowest) & (bits <= highest)).to(tl.int32)
        if WHOLE_ROWS:
            tl.store(table + start // ROWS, tl.sum(found))
        else:
            at = table + i * tl.num_programs(0) + tl.program_id(0)
            tl.store(at, tl.sum(found, axis=1), mask=i < last)
        start += ROWS


@triton.jit
def score_bits(
    src, out, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out int32 (m, n): the bits of the scores. Moves one read, and four bytes an entry."""
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        _, _, s, offsets, inside = scored_tile(
            src, i, last, n, j0, 0, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        tl.store(out + offsets, s.to(tl.int32, bitcast=True), mask=inside)
        start += ROWS
