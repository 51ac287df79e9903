"""The budget in integers: from a histogram of scores to the c of a law or the K-th largest score.

A score is a non-negative float32, so its bit pattern orders as the score does. A histogram bins the
pattern by its leading 13 bits (exponent and 5 mantissa bits) and carries per bin the count and the
sum of the remaining 18 bits, zeros left out. Both are integers: they do not depend on the order of
summation, and histograms of shards merge by addition. Within a bin all scores share an exponent, so
the sum of the scores is exact from the two.

The functions here are plain scalar Python that Numba can compile: the oracle runs them as they
stand, the CPU kernels compiled, and both give the same bits. In them

- x is a score scaled by a power of two, 2^(127 - top), that puts the largest in [1, 2) ([2, 4) at
  the very end of the float32 range), in float64; `value_of` maps a bit pattern to x;
- `budget` is K, the number of entries to keep;
- sums of x run over the bins of one exponent first, and then over the exponents: a device has the
  exponents summed side by side. Sums over the values of one bin are integers, in any order;
- sum p is within 1e-3 of K for any scores that span up to 30 orders of magnitude, as long as K is
  at least 1e-4 of the entries (below that the 2^-24 grid of p shows); squares of scores that are
  subnormal in float32 are known to a bin's width only. Where the histogram cannot promise this, it
  names the bin to refine: the counts of that bin's 2^18 values give the exact answer.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.stream import UNIT

LOW_BITS = 18
LOW_MASK = (1 << LOW_BITS) - 1
BINS = 1 << 13
#: Bins from here on hold infinities and NaN.
FINITE_BINS = 255 << 5
BINS_OF_EXPONENT = 32
#: Edges of bins where the branches of MAXIMUM may meet: x from 2^-120 to 2^120.
WIDEST_EDGE = 120 * BINS_OF_EXPONENT
#: The model error of the cut bin above which it is refined, as a share of K.
MODEL_ERROR = 2.0**-11
#: The most that x is lifted by for an outlier's sake under HYBRID and MAXIMUM, as a power of two.
MAX_LIFT = 60
FLOAT32_MAX = float(np.finfo(np.float32).max)

#: One integer per bin or value: a list to plain Python, an int64 array to compiled code.
Counts: TypeAlias = Sequence[int] | NDArray[np.int64]

# Numba freezes globals as constants; these names keep the enum out of the compiled code.
_L1, _L2, _HYBRID = int(Shape.L1), int(Shape.L2), int(Shape.HYBRID)
_MAXIMUM, _TRIMMED = int(Shape.MAXIMUM), int(Shape.TRIMMED)


Function = TypeVar("Function", bound=Callable[..., object])


def compilable(function: Function) -> Function:
    """The function as it stands, which compiled code may call too."""
    register_jitable(error_model="numpy")(function)
    return function


@compilable
def top_exponent(last_bin: int) -> int:
    """The exponent field that x is scaled by: of the largest score, kept within 1..253."""
    return min(max(last_bin >> 5, 1), 253)


@compilable
def value_of(bits: int, top: int) -> float:
    """x of a float32 bit pattern."""
    exponent = bits >> 23
    significand = bits & 0x7FFFFF
    if exponent > 0:
        significand += 0x800000
    else:
        exponent = 1
    return math.ldexp(float(significand), exponent - 23 - top)


@compilable
def law_value(shape: int, alpha: float, beta: float, x: float) -> float:
    """g(x)."""
    if shape == _L1:
        return x
    if shape == _L2:
        return x * x
    if shape == _HYBRID:
        return alpha * x + beta * (x * x)
    if shape == _MAXIMUM:
        return max(x, beta * (x * x))
    return x * x if x >= alpha else 0.0


@compilable
def bin_moments(count: int, low: int, b: int, top: int) -> tuple[float, float]:
    """The sum of x over a bin, exact, and the sum of x^2, to a relative 2e-4.

    Var x is between 0 and width^2 / 4; it is taken as that of a uniform spread about the mean.
    """
    unit = math.ldexp(1.0, max(b >> 5, 1) - 23 - top)
    n = float(count)
    mean = value_of(b << LOW_BITS, top) + unit * (float(low) / n)
    width = unit * (1 << LOW_BITS)
    return n * mean, n * (mean * mean) + (n - 1.0) * (width * width / 12.0)


@compilable
def bin_mass(
    count: int, low: int, b: int, top: int, shape: int, alpha: float, beta: float
) -> float:
    """The sum of g(x) over a bin."""
    if count == 0:
        return 0.0
    first, second = bin_moments(count, low, b, top)
    return law_sum(shape, alpha, beta, first, second)


@compilable
def law_sum(shape: int, alpha: float, beta: float, first: float, second: float) -> float:
    """The sum of g(x) over scores on one branch of g, from the sums of x and x^2."""
    if shape == _L1:
        return first
    if shape == _HYBRID:
        return alpha * first + beta * second
    if shape == _MAXIMUM:
        return max(first, beta * second)
    return second


@compilable
def occupied(count: Counts) -> tuple[int, int]:
    """The first and last nonempty bin; first > last if there is none."""
    first, last = 0, FINITE_BINS - 1
    while first < FINITE_BINS and count[first] == 0:
        first += 1
    while last >= first and count[last] == 0:
        last -= 1
    return first, last


@compilable
def trim_scale(shape_sum: int, budget: int) -> float:
    """eps^2 / ||A||_F^2 of "trimmed-l2", see `laws`."""
    return 14.0 * shape_sum * math.log(shape_sum / math.sqrt(2.0)) / budget


@compilable
def all_moments(count: Counts, low: Counts, first: int, last: int, top: int) -> tuple[float, float]:
    """The sums of x and x^2 over all bins."""
    l1, frobenius2, some_l1, some_frobenius2 = 0.0, 0.0, 0.0, 0.0
    for b in range(first, last + 1):
        if b % BINS_OF_EXPONENT == 0:
            l1, frobenius2 = l1 + some_l1, frobenius2 + some_frobenius2
            some_l1, some_frobenius2 = 0.0, 0.0
        if count[b] > 0:
            s1, s2 = bin_moments(count[b], low[b], b, top)
            some_l1 += s1
            some_frobenius2 += s2
    return l1 + some_l1, frobenius2 + some_frobenius2


@compilable
def coefficients(
    count: Counts, low: Counts, first: int, last: int, top: int,
    shape: int, parameter: float, shape_sum: int, budget: int,
) -> tuple[float, float, int]:  # fmt: skip
    """alpha and beta of HYBRID and TRIMMED, and the first bin that may be kept.

    `shape_sum` is m + n of the matrix that the group is.
    """
    if shape not in (_HYBRID, _TRIMMED):
        return 0.0, 0.0, first
    l1, frobenius2 = all_moments(count, low, first, last, top)
    if shape == _HYBRID:
        linear, square = parameter / l1, (1.0 - parameter) / frobenius2
        total = linear + square
        return float(np.float32(linear / total)), float(np.float32(square / total)), first
    trim = math.sqrt(trim_scale(shape_sum, budget) * frobenius2) / shape_sum
    kept = 0
    b = last
    # Downwards to the trim, and past it if it would leave fewer than the budget.
    while b > first:
        kept += count[b]
        if value_of(b << LOW_BITS, top) <= trim and kept >= budget:
            break
        b -= 1
    return value_of(b << LOW_BITS, top), 0.0, b


@compilable
def solve_bins(
    count: Counts, low: Counts, first: int, last: int, top: int,
    shape: int, alpha: float, beta: float, budget: int,
) -> tuple[float, int, int, float]:  # fmt: skip
    """c with sum min(1, c g(x)) = budget, from the histogram.

    Returns:
        (c, cut, above, below). cut is -1 where c is within the promised error; else c is a model,
        and bin `cut` must be refined, with `above` entries over it and a mass `below` under it.
    """
    remaining = 0
    for b in range(first, last + 1):
        remaining += count[b]
    if budget >= remaining:
        return math.inf, -1, 0, 0.0
    below, mass, exponents, bins = 0.0, 0.0, 0.0, 0.0
    cut = last
    # Going up, the first edge at which c = 1 / g(edge) would already keep too few; all the entries
    # from it on are capped, and the cap itself lies in the bin before it.
    for b in range(first, last + 1):
        if b % BINS_OF_EXPONENT == 0:
            exponents, bins = exponents + bins, 0.0
        g = law_value(shape, alpha, beta, value_of(b << LOW_BITS, top))
        if float(remaining) * g + (exponents + bins) < float(budget) * g:
            cut = b - 1
            break
        below = exponents + bins
        mass = bin_mass(count[b], low[b], b, top, shape, alpha, beta)
        bins += mass
        remaining -= count[b]
    n = float(count[cut])
    lower = law_value(shape, alpha, beta, value_of(cut << LOW_BITS, top))
    upper = law_value(shape, alpha, beta, value_of((cut + 1) << LOW_BITS, top))
    c = float(budget - remaining) / (below + mass)
    if cut == last and c * upper <= 1.0:
        return c, -1, 0, 0.0  # nothing is capped
    if c * mass > n and below > 0.0:
        c = (float(budget - remaining) - n) / below
    # Jensen against the chord: the most that the split of the cut bin can change sum p.
    error = n * (upper / lower - 1.0) / 4.0 if lower > 0.0 else n
    return c, cut if error > budget * MODEL_ERROR else -1, remaining, below


@compilable
def values_mass(
    n: int, low: int, high_square: int, low_square: int, cut: int, top: int,
    shape: int, alpha: float, beta: float,
) -> float:  # fmt: skip
    """The sum of g(x) over n scores of bin `cut`.

    low is the sum of their low bits; high_square and low_square are those of the upper and the
    lower LOW_BITS bits of its square, since the sum of squares itself may not fit in 64 bits.
    """
    unit = math.ldexp(1.0, max(cut >> 5, 1) - 23 - top)
    edge = value_of(cut << LOW_BITS, top)
    square = float(high_square) * float(1 << LOW_BITS) + float(low_square)
    first = float(n) * edge + unit * float(low)
    second = float(n) * (edge * edge) + (2.0 * (edge * unit)) * float(low) + (unit * unit) * square
    return law_sum(shape, alpha, beta, first, second)


@compilable
def solve_values(
    low: Counts, multiplicity: Counts, cut: int, above: int, below: float, top: int,
    shape: int, alpha: float, beta: float, budget: int,
) -> float:  # fmt: skip
    """c where the scores of the cut bin are known: `multiplicity` entries end in each `low`.

    `low` ascends. Arguments from `cut` on are those of `solve_bins`. Scores whose low bits are
    `stop` or more are capped, those under `start` are not; bisection brings the two together.
    """
    total = above
    for k in range(len(low)):
        total += multiplicity[k]
    start, stop = 0, 1 << LOW_BITS
    i, n, s1, s2, s3 = 0, 0, 0, 0, 0  # where the scores under `start` end, and their sums
    c = 0.0
    while start < stop:
        # The last turn sums up to `stop` itself.
        middle = (start + stop) // 2 if stop - start > 1 else stop
        k, m, t1, t2, t3 = i, n, s1, s2, s3
        while k < len(low) and low[k] < middle:
            square = low[k] * low[k]
            m += multiplicity[k]
            t1 += multiplicity[k] * low[k]
            t2 += multiplicity[k] * (square >> LOW_BITS)
            t3 += multiplicity[k] * (square & LOW_MASK)
            k += 1
        mass = below + values_mass(m, t1, t2, t3, cut, top, shape, alpha, beta)
        if middle == stop:
            c = float(budget - (total - m)) / mass
            break
        g = law_value(shape, alpha, beta, value_of((cut << LOW_BITS) + middle, top))
        if float(total - m) * g + mass < float(budget) * g:
            stop = middle
        else:
            start, i, n, s1, s2, s3 = middle, k, m, t1, t2, t3
    return c


@compilable
def edge_weight(k: int) -> float:
    """The beta of MAXIMUM whose branches meet at the k-th edge of a bin from x = 1 on."""
    edge = math.ldexp(float(BINS_OF_EXPONENT + k % BINS_OF_EXPONENT), k // BINS_OF_EXPONENT - 5)
    return float(np.float32(1.0 / edge))


@compilable
def maximum_weight(
    count: Counts, low: Counts, first: int, last: int, top: int, tau: float, budget: int
) -> float:
    """The least beta of MAXIMUM for which the solved c is at most beta * tau; 0 where it is L1.

    Inside a bin only the sum is known, so the branches must meet at an edge: tau is met to 3 %.
    """
    kept = 0
    for b in range(first, last + 1):
        kept += count[b]
    if tau >= 1.0 or budget >= kept:
        return 0.0
    start, stop = -WIDEST_EDGE, WIDEST_EDGE
    while stop - start > 1:
        middle = (start + stop) // 2
        beta = edge_weight(middle)
        c = solve_bins(count, low, first, last, top, _MAXIMUM, 0.0, beta, budget)[0]
        if c > beta * tau:
            stop = middle
        else:
            start = middle
    return edge_weight(start)


@compilable
def prepare(
    count: Counts, low: Counts, shape: int, parameter: float, m: int, n: int, budget: int
) -> tuple[float, float, int, int, int]:
    """(alpha, beta, first, last, top) of a group that is an m x n matrix; first > last if zero.

    `parameter` is alpha of HYBRID or kappa of MAXIMUM, whose tau is kappa / n.
    """
    first, last = occupied(count)
    if first > last:
        return 0.0, 0.0, first, last, 127
    top = top_exponent(last)
    alpha, beta, first = coefficients(count, low, first, last, top, shape, parameter, m + n, budget)
    if shape == _MAXIMUM:
        beta = maximum_weight(count, low, first, last, top, parameter / n, budget)
    return alpha, beta, first, last, top


@compilable
def kernel_parameters(
    c: float, top: int, shape: int, alpha: float, beta: float
) -> tuple[float, float, float, float]:
    """(C, alpha, beta, scale) as the kernels take them; c, alpha and beta are in terms of x.

    Where an outlier lifts the largest score far over the cap, x in float32 would have no room for
    the scores that matter. So the kernels' x is larger by the power of two that brings the cap
    into [1, 2), or the trim of TRIMMED over it, as far as the scale is a float32. Scores over the
    cap may become infinite under L1, L2 and TRIMMED. HYBRID and MAXIMUM multiply x^2 by an alpha or
    a beta that may be 0, so there the lift ends at 2^60, which leaves room for the largest x^2.
    C = fl32(c 2^24) for that x is finite, so that C * 0 = 0; every scaling is exact.
    """
    lift = 0
    limit = min(MAX_LIFT, top) if shape in (_HYBRID, _MAXIMUM) else top
    while lift < limit and c * law_value(shape, alpha, beta, math.ldexp(1.0, -lift)) > 1.0:
        lift += 1
    power = 2 if shape in (_L2, _TRIMMED) else 1
    C = min(math.ldexp(c * UNIT, -lift * power), FLOAT32_MAX)
    scale = math.ldexp(1.0, 127 - top + lift)
    return C, math.ldexp(alpha, lift if shape == _TRIMMED else 0), math.ldexp(beta, -lift), scale


@compilable
def find_rank(count: Counts, budget: int) -> tuple[int, int]:
    """The bin of the budget-th largest score, and how many scores lie above that bin.

    The bin is -1 where fewer than `budget` scores are positive.
    """
    above = 0
    b = FINITE_BINS - 1
    while b >= 0 and above + count[b] < budget:
        above += count[b]
        b -= 1
    return b, above


@compilable
def find_rank_value(
    low: Counts, multiplicity: Counts, above: int, budget: int
) -> tuple[int, int, int]:
    """(low bits of the budget-th largest score, how many equal it, how many of those to keep).

    The budget-th largest is one of these values: above < budget <= above + sum multiplicity.
    """
    k = len(low) - 1
    while above + multiplicity[k] < budget:
        above += multiplicity[k]
        k -= 1
    return low[k], multiplicity[k], budget - above
