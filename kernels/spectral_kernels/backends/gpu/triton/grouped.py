"""The kernels of `kernels` over many matrices at once: one launch for a whole list of layers.

The grid's third axis counts the matrices; the first two are those that the largest needs. Programs
that a smaller matrix does not need end at once. `table` int64 (fields, matrices) says where each
matrix lies and how it is cut; its rows are FIELDS. The matrices share their element type, to which
`like` is a pointer, and their tiles. Scores are magnitudes, and each matrix is a group.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton import conditional, kernels
from spectral_kernels.backends.gpu.triton.histograms import BINS, INTEGERS, VALUES
from spectral_kernels.reference.laws import Base

#: Addresses; rows, columns / UNIT and rows to a program; the stream; where its segments lie in the
#: table of ties, and how many they are. The rest is read by `rank` and `solve`.
FIELDS = (
    "SOURCE", "OUTPUT", "ROWS", "UNITS", "STRIP", "STREAM", "FIRST_SEGMENT", "SEGMENTS", "SIZE",
    "BUDGET", "SHAPE_SUM", "PARAMETER", "SCALE",
)  # fmt: skip
_SOURCE, _OUTPUT, _ROWS, _UNITS, _STRIP, _STREAM, _FIRST_SEGMENT, _SEGMENTS, _SIZE = (
    tl.constexpr(column) for column in range(9)
)
_MAGNITUDE = tl.constexpr(int(Base.MAGNITUDE))

_histogram, _refine, _count_ties = kernels.histogram, conditional.refine_cut, conditional.count_ties
_find_tie, _keep_largest, _sample = conditional.find_tie, kernels.keep_largest, kernels.sample
_count_not_finite = conditional.count_not_finite


@triton.jit
def field(table, column: tl.constexpr):
    """A number of this program's matrix."""
    return tl.load(table + column * tl.num_programs(2) + tl.program_id(2))


@triton.jit
def address(table, column: tl.constexpr, like, ALIGNED: tl.constexpr):
    """The memory of this program's matrix."""
    pointer = field(table, column).to(like.dtype)
    return tl.multiple_of(pointer, ALIGNED)


@triton.jit
def cut_of(table, UNIT: tl.constexpr, COLUMNS: tl.constexpr):
    """(rows, columns / UNIT, rows to a program, whether this program has any) of its matrix."""
    m, units, strip = field(table, _ROWS), field(table, _UNITS), field(table, _STRIP)
    own = (tl.program_id(1) * strip < m) & (tl.program_id(0) * COLUMNS < units * UNIT)
    return m, units, strip, own


@triton.jit
def histogram_many(
    table, like, counts, copies: tl.int32,
    UNIT: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """counts int64 (matrices, copies, 8192), packed."""
    m, units, strip, own = cut_of(table, UNIT, COLUMNS)
    if own:
        src = address(table, _SOURCE, like, ALIGNED)
        own_counts = counts + tl.program_id(2).to(tl.int64) * copies * BINS
        _histogram(
            src, own_counts, copies, m, units, strip, None, None, 0.0, 0.0, None, None, UNIT,
            _MAGNITUDE, ROWS, COLUMNS, 16, 0, "ieee",
        )  # fmt: skip


@triton.jit
def refine_many(
    table, like, values, integers,
    UNIT: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """values int64 (matrices, 2^18)."""
    m, units, strip, own = cut_of(table, UNIT, COLUMNS)
    if own:
        src = address(table, _SOURCE, like, ALIGNED)
        matrix = tl.program_id(2).to(tl.int64)
        _refine(
            src, values + matrix * VALUES, integers + matrix * INTEGERS, m, units, strip, None,
            None, 0.0, 0.0, None, None, UNIT, _MAGNITUDE, ROWS, COLUMNS, 16, 0, "ieee",
        )  # fmt: skip


@triton.jit
def count_ties_many(
    table, like, ties, integers, WHOLE_ROWS: tl.constexpr,
    UNIT: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ties int32 (segments of all,). The tiles of a row stand beside each other."""
    m, units, strip, own = cut_of(table, UNIT, COLUMNS)
    integers += tl.program_id(2).to(tl.int64) * INTEGERS
    if own:
        src = address(table, _SOURCE, like, ALIGNED)
        _count_ties(
            src, ties + field(table, _FIRST_SEGMENT), integers, m, units, strip, None, None, 0.0,
            0.0, None, None, UNIT, _MAGNITUDE, WHOLE_ROWS, ROWS, COLUMNS, 16, 0, "ieee",
        )  # fmt: skip


@triton.jit
def find_tie_many(
    table, like, ties, integers, tie_stops, tiles: tl.int64, WHOLE_ROWS: tl.constexpr,
    UNIT: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """tie_stops int64 (matrices,); a program a matrix, the segments of a row `tiles` apart."""
    m, units, strip, _own = cut_of(table, UNIT, COLUMNS)
    matrix = tl.program_id(2).to(tl.int64)
    _find_tie(
        address(table, _SOURCE, like, ALIGNED), ties + field(table, _FIRST_SEGMENT),
        integers + matrix * INTEGERS, tie_stops + matrix, field(table, _SEGMENTS), tiles, m, units,
        strip, None, None, 0.0, 0.0, None, None, UNIT, _MAGNITUDE, WHOLE_ROWS, SPAN, ROWS, COLUMNS,
        16, 0, "ieee",
    )  # fmt: skip


@triton.jit
def keep_largest_many(
    table, like, kept, thresholds, tie_stops,
    UNIT: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """kept int64 (matrices,)."""
    m, units, strip, own = cut_of(table, UNIT, COLUMNS)
    if own:
        matrix = tl.program_id(2)
        _keep_largest(
            address(table, _SOURCE, like, ALIGNED), address(table, _OUTPUT, like, ALIGNED),
            kept + matrix, m, units, strip, None, None, 0.0, 0.0, None, None, thresholds + matrix,
            tie_stops + matrix, UNIT, _MAGNITUDE, False, ROWS, COLUMNS, 16, 0, "ieee",
        )  # fmt: skip


@triton.jit(do_not_specialize=["k0", "k1"])
def sample_many(
    table, like, kept, laws, k0: tl.uint32, k1: tl.uint32, SHAPE: tl.constexpr,
    RESCALE: tl.constexpr, NVIDIA: tl.constexpr,
    UNIT: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """kept int64 (matrices,); laws float32 (matrices, 4)."""
    m, units, strip, own = cut_of(table, UNIT, COLUMNS)
    if own:
        matrix = tl.program_id(2)
        zero = m * 0
        _sample(
            address(table, _SOURCE, like, ALIGNED), address(table, _OUTPUT, like, ALIGNED),
            kept + matrix, m, units, strip, None, None, 0.0, 0.0, None, None, laws + matrix * 4,
            zero, zero, field(table, _STREAM), k0, k1, UNIT, _MAGNITUDE, SHAPE, False, RESCALE, 0,
            ROWS, COLUMNS, 16, 0, "ieee", NVIDIA,
        )  # fmt: skip


@triton.jit
def count_not_finite_many(
    table,
    like,
    found,
    laws,
    CONDITIONAL: tl.constexpr,
    ALIGNED: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """found int64 (matrices,), of what was written."""
    matrix = tl.program_id(2)
    _count_not_finite(
        address(table, _OUTPUT, like, ALIGNED), found + matrix, laws + matrix * 4,
        field(table, _SIZE), CONDITIONAL, ENTRIES,
    )  # fmt: skip
