"""Laws solved on the device: `budget`, operation by operation, one program to a group.

Numbers are float64 and int64 and in the order of `budget`, so that the bits are those of the host;
kernels are launched without fused multiply-add. Lanes sum side by side; only the sums of the
exponents are added in turn. Shared arguments: see `histograms`.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.histograms import (
    ABOVE,
    BINS,
    CUT,
    EQUAL,
    EXPONENT_SHIFT,
    FINITE_BINS,
    FLOATS,
    INTEGERS,
    LANES,
    LOW_BITS,
    LOW_MASK,
    OF_EXPONENT,
    SPAN,
    SPANS,
    TOP,
    VALUES,
    as_float64,
    at_or_after,
    edge_of,
    moments,
    occupied,
    of_group,
    pick,
    power_of_two,
    value_of,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.stream import UNIT

_WIDEST_EDGE = tl.constexpr(bg.WIDEST_EDGE)
_MODEL_ERROR = tl.constexpr(bg.MODEL_ERROR)
_MAX_LIFT = tl.constexpr(bg.MAX_LIFT)
_FLOAT32_MAX = tl.constexpr(bg.FLOAT32_MAX)
_UNIT = tl.constexpr(float(UNIT))
_L1, _L2 = tl.constexpr(int(Shape.L1)), tl.constexpr(int(Shape.L2))
_HYBRID, _MAXIMUM = tl.constexpr(int(Shape.HYBRID)), tl.constexpr(int(Shape.MAXIMUM))
_TRIMMED = tl.constexpr(int(Shape.TRIMMED))


@triton.jit
def law_value(alpha, beta, x, SHAPE: tl.constexpr):
    """g(x)."""
    if SHAPE == _L1:
        g = x
    elif SHAPE == _L2:
        g = x * x
    elif SHAPE == _HYBRID:
        g = alpha * x + beta * (x * x)
    elif SHAPE == _MAXIMUM:
        g = tl.maximum(x, beta * (x * x))
    else:
        g = tl.where(x >= alpha, x * x, x * 0)
    return g


@triton.jit
def law_sum(alpha, beta, first, second, SHAPE: tl.constexpr):
    """The sum of g(x) over scores on one branch of g, from the sums of x and x^2."""
    if SHAPE == _L1:
        total = first
    elif SHAPE == _HYBRID:
        total = alpha * first + beta * second
    elif SHAPE == _MAXIMUM:
        total = tl.maximum(first, beta * second)
    else:
        total = second
    return total


@triton.jit
def bin_moments(count, low, b, top):
    """The sums of x and x^2 over bins, see `budget.bin_moments`; 0 where a bin is empty."""
    unit = power_of_two(tl.maximum(b >> EXPONENT_SHIFT, 1) - 23 - top)
    n = count.to(tl.float64)
    mean = edge_of(b, top) + unit * (low.to(tl.float64) / tl.maximum(count, 1).to(tl.float64))
    width = unit * (LOW_MASK + 1.0)
    second = n * (mean * mean) + (n - 1.0) * (width * width / 12.0)
    return n * mean, tl.where(count > 0, second, second * 0)


@triton.jit
def bin_mass(count, low, b, top, alpha, beta, SHAPE: tl.constexpr):
    """The sum of g(x) over bins."""
    first, second = bin_moments(count, low, b, top)
    return law_sum(alpha, beta, first, second, SHAPE)


@triton.jit
def bins(count, low, b, first, last):
    """count and low of bins, 0 outside [first, last]."""
    inside = (b >= first) & (b <= last)
    return tl.load(count + b, mask=inside, other=0), tl.load(low + b, mask=inside, other=0), inside


@triton.jit
def in_turn(sums, first, last):
    """(the sum of the exponents before each, the sum of all), added one after the other.

    sums float64 (256,) are those of the exponents; `first` and `last` are bins.
    """
    lane = tl.arange(0, LANES)
    before, running = tl.zeros((LANES,), tl.float64), tl.sum(sums * 0)
    exponent, stop = first >> EXPONENT_SHIFT, last >> EXPONENT_SHIFT
    while exponent <= stop:
        before = tl.where(lane == exponent, running, before)
        # One number and zeros, the sum of which is exact.
        running = running + tl.sum(tl.where(lane == exponent, sums, 0.0))
        exponent += 1
    return before, running


@triton.jit
def all_moments(count, low, first, last, top):
    """The sums of x and x^2 over all bins."""
    lane = tl.arange(0, LANES).to(tl.int64)
    l1, frobenius2 = tl.zeros((LANES,), tl.float64), tl.zeros((LANES,), tl.float64)
    for k in range(OF_EXPONENT):
        b = lane * OF_EXPONENT + k
        n, lows, _ = bins(count, low, b, first, last)
        s1, s2 = bin_moments(n, lows, b, top)
        l1 += s1
        frobenius2 += s2
    _before, l1_sum = in_turn(l1, first, last)
    _before, frobenius2_sum = in_turn(frobenius2, first, last)
    return l1_sum, frobenius2_sum


@triton.jit
def trimmed_bin(count, first, last, top, trim, budget, entries):
    """The last bin up to the trim with `budget` entries from it on, or the first bin."""
    lane = tl.arange(0, LANES).to(tl.int64)
    ahead = at_or_after(entries)
    found = tl.zeros((LANES,), tl.int64) + first
    for k in range(OF_EXPONENT):
        b = lane * OF_EXPONENT + k
        enough = (edge_of(b, top) <= trim) & (ahead >= budget) & (b > first) & (b <= last)
        found = tl.where(enough, tl.maximum(found, b), found)
        ahead -= tl.load(count + b, mask=b < FINITE_BINS, other=0)
    return tl.max(found)


@triton.jit
def coefficients(count, low, first, last, top, parameter, scale, shape_sum, budget, entries,
                 SHAPE: tl.constexpr):  # fmt: skip
    """alpha and beta of HYBRID and TRIMMED, and the first bin that may be kept."""
    alpha, beta = parameter * 0, parameter * 0
    if SHAPE == _HYBRID:
        l1, frobenius2 = all_moments(count, low, first, last, top)
        linear, square = parameter / l1, (1.0 - parameter) / frobenius2
        total = linear + square
        alpha = (linear / total).to(tl.float32).to(tl.float64)
        beta = (square / total).to(tl.float32).to(tl.float64)
    elif SHAPE == _TRIMMED:
        _l1, frobenius2 = all_moments(count, low, first, last, top)
        trim = tl.sqrt(scale * frobenius2) / shape_sum.to(tl.float64)
        first = trimmed_bin(count, first, last, top, trim, budget, entries)
        alpha = edge_of(first, top)
    return alpha, beta, first


@triton.jit
def solve_bins(count, low, first, last, top, alpha, beta, budget, SHAPE: tl.constexpr):
    """(c, cut, above, below), see `budget.solve_bins`; fewer entries than the budget give inf."""
    lane = tl.arange(0, LANES).to(tl.int64)
    sums, entries = tl.zeros((LANES,), tl.float64), tl.zeros((LANES,), tl.int64)
    for k in range(OF_EXPONENT):
        b = lane * OF_EXPONENT + k
        n, lows, _ = bins(count, low, b, first, last)
        sums += bin_mass(n, lows, b, top, alpha, beta, SHAPE)
        entries += n
    before, _all = in_turn(sums, first, last)
    ahead = at_or_after(entries)
    available = tl.sum(entries)
    wanted = budget.to(tl.float64)
    # The first edge at which c = 1 / g(edge) would keep too few; a lane sums its own bins in turn.
    own, edge = tl.zeros((LANES,), tl.float64), tl.zeros((LANES,), tl.int64) + BINS
    remaining = ahead
    for k in range(OF_EXPONENT):
        b = lane * OF_EXPONENT + k
        n, lows, inside = bins(count, low, b, first, last)
        g = law_value(alpha, beta, edge_of(b, top), SHAPE)
        few = inside & (remaining.to(tl.float64) * g + (before + own) < wanted * g)
        edge = tl.where(few, tl.minimum(edge, b), edge)
        own += bin_mass(n, lows, b, top, alpha, beta, SHAPE)
        remaining -= n
    over = tl.min(edge)
    cut = tl.where(over < BINS, over - 1, last)
    exponent = cut >> EXPONENT_SHIFT
    b = tl.maximum(exponent << EXPONENT_SHIFT, first)
    above, inner = pick(ahead, exponent), tl.sum(sums * 0)
    while b < cut:
        n, lows, _ = bins(count, low, b, first, last)
        inner += bin_mass(n, lows, b, top, alpha, beta, SHAPE)
        above -= n
        b += 1
    below = pick(before, exponent) + inner
    equal, lows, _ = bins(count, low, cut, first, last)
    mass = bin_mass(equal, lows, cut, top, alpha, beta, SHAPE)
    above -= equal
    n = equal.to(tl.float64)
    lower = law_value(alpha, beta, edge_of(cut, top), SHAPE)
    upper = law_value(alpha, beta, edge_of(cut + 1, top), SHAPE)
    left = (budget - above).to(tl.float64)
    c = left / tl.where(below + mass > 0, below + mass, mass + 1.0)
    uncapped = (cut == last) & (c * upper <= 1.0)
    capped = (uncapped == 0) & (c * mass > n) & (below > 0)
    c = tl.where(capped, (left - n) / tl.where(below > 0, below, below + 1.0), c)
    ratio = upper / tl.where(lower > 0, lower, lower + 1.0)
    error = tl.where(lower > 0, n * (ratio - 1.0) / 4.0, n)
    all_kept = budget >= available
    exact = all_kept | uncapped | (error <= wanted * _MODEL_ERROR)
    c = tl.where(all_kept, float("inf"), c)
    return c, tl.where(exact, -1, cut), above, below, equal


@triton.jit
def edge_weight(k):
    """See `budget.edge_weight`."""
    edge = ((k & (OF_EXPONENT - 1)) + OF_EXPONENT).to(tl.float64)
    edge = edge * power_of_two((k >> EXPONENT_SHIFT) - EXPONENT_SHIFT)
    return (1.0 / edge).to(tl.float32).to(tl.float64)


@triton.jit
def maximum_weight(count, low, first, last, top, tau, budget, entries):
    """See `budget.maximum_weight`."""
    weight, start, stop = tau * 0, first * 0 - _WIDEST_EDGE, first * 0 + _WIDEST_EDGE
    if (tau < 1.0) & (budget < tl.sum(entries)):
        while stop - start > 1:
            middle = (start + stop) >> 1
            beta = edge_weight(middle)
            c, _, _, _, _ = solve_bins(
                count, low, first, last, top, tau * 0, beta, budget, _MAXIMUM
            )
            more = c > beta * tau
            start, stop = tl.where(more, start, middle), tl.where(more, middle, stop)
        weight = edge_weight(start)
    return weight


@triton.jit(do_not_specialize=["budgets", "parameters", "scales", "shape_sums"])
def solve_law(
    count, low, budgets, parameters, scales, shape_sums, integers, floats,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """A law as far as the histogram gives it: `budget.prepare` and `budget.solve_bins`.

    parameters: alpha of HYBRID or tau of MAXIMUM; scales: `budget.trim_scale`; float64 bits, each a
    number or (groups,), as is shape_sums, m + n. Writes all columns of integers and floats that a
    law has. Moves the histogram, from the cache.
    """
    group = tl.program_id(0).to(tl.int64)
    count, low = count + group * BINS, low + group * BINS
    integers, floats = integers + group * INTEGERS, floats + group * FLOATS
    budget, shape_sum = of_group(budgets, group), of_group(shape_sums, group)
    parameter = as_float64(of_group(parameters, group))
    scale = as_float64(of_group(scales, group))
    first, last, entries = occupied(count)
    top = tl.minimum(tl.maximum(last >> EXPONENT_SHIFT, 1), 253)
    c, alpha, beta, below = parameter * 0, parameter * 0, parameter * 0, parameter * 0
    cut, above, equal = first * 0 - 1, first * 0, first * 0
    if first <= last:
        alpha, beta, start = coefficients(
            count, low, first, last, top, parameter, scale, shape_sum, budget, entries, SHAPE
        )
        if SHAPE == _MAXIMUM:
            beta = maximum_weight(count, low, start, last, top, parameter, budget, entries)
        c, cut, above, below, equal = solve_bins(
            count, low, start, last, top, alpha, beta, budget, SHAPE
        )
    else:
        top = top * 0
    tl.store(floats, c)
    tl.store(floats + 1, alpha)
    tl.store(floats + 2, beta)
    tl.store(floats + 3, below)
    tl.store(integers + CUT, cut)
    tl.store(integers + ABOVE, above)
    tl.store(integers + EQUAL, equal)
    tl.store(integers + TOP, top)


@triton.jit
def values_mass(n, low, high_square, low_square, cut, top, alpha, beta, SHAPE: tl.constexpr):
    """See `budget.values_mass`."""
    unit = power_of_two(tl.maximum(cut >> EXPONENT_SHIFT, 1) - 23 - top)
    edge = edge_of(cut, top)
    square = high_square.to(tl.float64) * (LOW_MASK + 1.0) + low_square.to(tl.float64)
    n, low = n.to(tl.float64), low.to(tl.float64)
    first = n * edge + unit * low
    second = n * (edge * edge) + (2.0 * (edge * unit)) * low + (unit * unit) * square
    return law_sum(alpha, beta, first, second, SHAPE)


@triton.jit
def moments_under(values, sums, stop):
    """The `moments` of the values under `stop`, from the table and the sums of its spans."""
    span = tl.arange(0, SPANS)
    whole = span < stop // SPAN
    n = tl.sum(tl.load(sums + span, mask=whole, other=0))
    s1 = tl.sum(tl.load(sums + SPANS + span, mask=whole, other=0))
    s2 = tl.sum(tl.load(sums + 2 * SPANS + span, mask=whole, other=0))
    s3 = tl.sum(tl.load(sums + 3 * SPANS + span, mask=whole, other=0))
    low = stop // SPAN * SPAN + tl.arange(0, SPAN)
    t0, t1, t2, t3 = moments(tl.load(values + low, mask=low < stop, other=0).to(tl.int64), low)
    return n + t0, s1 + t1, s2 + t2, s3 + t3


@triton.jit
def row_moments_under(row, n, cut, stop, COLUMNS: tl.constexpr):
    """The same from the bits of a row themselves."""
    s0, s1, s2, s3 = stop * 0, stop * 0, stop * 0, stop * 0
    j = n * 0
    while j < n:
        at = j + tl.arange(0, COLUMNS)
        bits = tl.load(row + at, mask=at < n, other=0).to(tl.int64)
        low = bits & LOW_MASK
        found = (bits > 0) & (bits >> LOW_BITS == cut) & (low < stop)
        t0, t1, t2, t3 = moments(found.to(tl.int64), low)
        s0, s1, s2, s3 = s0 + t0, s1 + t1, s2 + t2, s3 + t3
        j += COLUMNS
    return s0, s1, s2, s3


@triton.jit(do_not_specialize=["budgets"])
def finish_law(
    values, sums, budgets, integers, floats, laws, n: tl.int64,
    SHAPE: tl.constexpr, BY_ROW: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """laws float32 (groups, 4): C, alpha, beta and scale as `sample` takes them.

    `budget.solve_values`, where a bin was refined, and `budget.kernel_parameters`. BY_ROW: `values`
    are the bits int32 (groups, n) of a row each, and `sums` None.
    """
    group = tl.program_id(0).to(tl.int64)
    integers, floats = integers + group * INTEGERS, floats + group * FLOATS
    budget = of_group(budgets, group)
    cut, above = tl.load(integers + CUT), tl.load(integers + ABOVE)
    top = tl.load(integers + TOP)
    c, alpha, beta = tl.load(floats), tl.load(floats + 1), tl.load(floats + 2)
    if cut >= 0:
        below, wanted = tl.load(floats + 3), budget.to(tl.float64)
        total = above + tl.load(integers + EQUAL)
        start, stop = cut * 0, cut * 0 + VALUES
        # As many turns as there are bits, and one that sums up to `stop` itself.
        for _ in range(LOW_BITS + 1):
            middle = (start + stop + 1) >> 1
            if BY_ROW:
                s0, s1, s2, s3 = row_moments_under(values + group * n, n, cut, middle, COLUMNS)
            else:
                s0, s1, s2, s3 = moments_under(
                    values + group * VALUES, sums + group * (4 * SPANS), middle
                )
            mass = below + values_mass(s0, s1, s2, s3, cut, top, alpha, beta, SHAPE)
            remaining = total - s0
            g = law_value(alpha, beta, value_of((cut << LOW_BITS) + middle, top), SHAPE)
            few = remaining.to(tl.float64) * g + mass < wanted * g
            c = (budget - remaining).to(tl.float64) / tl.where(mass > 0, mass, mass + 1.0)
            few = few | (middle == stop)
            start, stop = tl.where(few, start, middle), tl.where(few, middle, stop)
    # The power of two that brings the cap into [1, 2).
    power = tl.arange(0, 256)
    g = law_value(alpha, beta, power_of_two(-power), SHAPE)
    enough = (power >= top) | ((c * g > 1.0) == 0)
    if (SHAPE == _HYBRID) | (SHAPE == _MAXIMUM):
        enough = enough | (power >= _MAX_LIFT)
    lift = tl.min(tl.where(enough, power, 256)).to(tl.int64)
    drop = lift
    if SHAPE == _L2:
        drop = 2 * lift
    elif SHAPE == _TRIMMED:
        drop = 2 * lift
        alpha = alpha * power_of_two(lift)
    C = tl.minimum(c * _UNIT * power_of_two(-drop), _FLOAT32_MAX)
    scale = power_of_two(tl.where(top > 0, 127 - top + lift, 0))
    tl.store(laws + group * 4, C.to(tl.float32))
    tl.store(laws + group * 4 + 1, alpha.to(tl.float32))
    tl.store(laws + group * 4 + 2, (beta * power_of_two(-lift)).to(tl.float32))
    tl.store(laws + group * 4 + 3, scale.to(tl.float32))
