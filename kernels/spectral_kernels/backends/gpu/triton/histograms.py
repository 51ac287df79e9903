"""Histograms on the device, and the arithmetic of `budget` on their bins.

`solve` and `rank` solve budgets from these. A lane is one exponent of the scores: 32 bins.
Arguments that they share:

count, low        int64 (groups, 8192), the histogram
budgets           entries to keep: a number, or int64 (groups,)
integers, floats  int64 (groups, 8) and float64 (groups, 4), what one kernel leaves to the next; see
                  the columns below
values            int64 (groups, 2^18), how often each value of the low bits occurs in bin `cut`
sums              int64 (groups, 4, SPANS), the `moments` of spans of the values

float64 arguments travel as their bits, in int64.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.kernels import PACKED_LOW
from spectral_kernels.reference import budget as bg

#: Columns of `integers`: the bin to refine or -1, how many scores lie over it and in it, the
#: exponent of x; how many ties are kept where ties are cut, else 0, and the threshold's bits.
CUT, ABOVE, EQUAL, TOP, TIES, THRESHOLD = (tl.constexpr(column) for column in range(6))
INTEGERS = tl.constexpr(8)
#: Columns of `floats`: c, alpha, beta, and the mass under the cut bin.
FLOATS = tl.constexpr(4)
#: Values of the low bits that a program of `fold_values` sums, and programs that it takes.
SPAN = tl.constexpr(2048)
SPANS = tl.constexpr((1 << bg.LOW_BITS) // 2048)
#: Bins that a program of `fold_histogram` sums over the copies.
FOLD = tl.constexpr(256)

LANES = tl.constexpr(256)
BINS = tl.constexpr(bg.BINS)
FINITE_BINS = tl.constexpr(bg.FINITE_BINS)
OF_EXPONENT = tl.constexpr(bg.BINS_OF_EXPONENT)
EXPONENT_SHIFT = tl.constexpr(bg.BINS_OF_EXPONENT.bit_length() - 1)
LOW_BITS, LOW_MASK = tl.constexpr(bg.LOW_BITS), tl.constexpr(bg.LOW_MASK)
VALUES = tl.constexpr(1 << bg.LOW_BITS)
_PACKED_LOW = tl.constexpr(PACKED_LOW)
_PACKED_MASK = tl.constexpr((1 << PACKED_LOW) - 1)


@triton.jit
def of_group(given, group):
    """The value of a group: a number is that of all."""
    value = tl.load(given + group) if given.dtype.is_ptr() else given
    return value.to(tl.int64)


@triton.jit
def as_float64(bits):
    """The float64 of these bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def power_of_two(k):
    """2^k, float64, of integers from -1022 to 1023."""
    return ((k.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def value_of(bits, top):
    """x of bits, see `budget.value_of`."""
    exponent = bits >> 23
    significand = (bits & 0x7FFFFF) + tl.where(exponent > 0, 0x800000, 0)
    return significand.to(tl.float64) * power_of_two(tl.maximum(exponent, 1) - 23 - top)


@triton.jit
def edge_of(b, top):
    """The least x of bins."""
    return value_of(b.to(tl.int64) << LOW_BITS, top)


@triton.jit
def at_or_after(entries):
    """Running sums from the end, int64."""
    return tl.sum(entries) - (tl.cumsum(entries, axis=0) - entries)


@triton.jit
def pick(values, at):
    """The entry of a vector at an index."""
    index = tl.arange(0, values.shape[0])
    return tl.sum(tl.where(index == at, values, values * 0))


@triton.jit
def occupied(count):
    """The first and last nonempty bin, or first > last, and how many entries an exponent has."""
    lane = tl.arange(0, LANES).to(tl.int64)
    first = tl.zeros((LANES,), tl.int64) + FINITE_BINS
    last = tl.zeros((LANES,), tl.int64) - 1
    entries = tl.zeros((LANES,), tl.int64)
    for k in range(OF_EXPONENT):
        b = lane * OF_EXPONENT + k
        found = tl.load(count + b, mask=b < FINITE_BINS, other=0)
        first = tl.where(found > 0, tl.minimum(first, b), first)
        last = tl.where(found > 0, b, last)
        entries += found
    return tl.min(first), tl.max(last), entries


@triton.jit(do_not_specialize=["copies"])
def fold_histogram(table, count, low, nonfinite, copies: tl.int32):
    """count and low int64 (groups, 8192) from the packed table int64 (groups, copies, 8192).

    A program FOLD bins of a group. nonfinite int64 (groups,) gets how many scores are infinite
    or NaN added.
    """
    group = tl.program_id(1).to(tl.int64)
    b = tl.program_id(0) * FOLD + tl.arange(0, FOLD)
    entries, lows = tl.zeros((FOLD,), tl.int64), tl.zeros((FOLD,), tl.int64)
    k = copies * 0
    while k < copies:
        packed = tl.load(table + (group * copies + k) * BINS + b)
        entries += packed >> _PACKED_LOW
        lows += packed & _PACKED_MASK
        k += 1
    tl.store(count + group * BINS + b, entries)
    tl.store(low + group * BINS + b, lows)
    bad = tl.sum(tl.where(b >= FINITE_BINS, entries, 0))
    if bad > 0:
        tl.atomic_add(nonfinite + group, bad, sem="relaxed")


@triton.jit
def moments(multiplicity, low):
    """Sums over some values: how many, of the low bits, and of both halves of their squares."""
    square = low * low
    return (
        tl.sum(multiplicity), tl.sum(multiplicity * low),
        tl.sum(multiplicity * (square >> LOW_BITS)), tl.sum(multiplicity * (square & LOW_MASK)),
    )  # fmt: skip


@triton.jit
def fold_values(values, integers, sums):
    """sums int64 (groups, 4, SPANS): the `moments` of each span of the values of a cut bin.

    A program a span; reads the values once, or nothing where no bin is refined.
    """
    group, span = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    if tl.load(integers + group * INTEGERS + CUT) >= 0:
        low = span * SPAN + tl.arange(0, SPAN)
        multiplicity = tl.load(values + group * VALUES + low).to(tl.int64)
        n, s1, s2, s3 = moments(multiplicity, low)
        at = sums + group * (4 * SPANS) + span
        tl.store(at, n)
        tl.store(at + SPANS, s1)
        tl.store(at + 2 * SPANS, s2)
        tl.store(at + 3 * SPANS, s3)
