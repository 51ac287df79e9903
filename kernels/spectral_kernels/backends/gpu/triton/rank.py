"""The K-th largest score and its ties, on the device; one program to a group.

Integers only. Shared arguments: see `histograms`.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.histograms import (
    ABOVE,
    BINS,
    CUT,
    INTEGERS,
    LANES,
    LOW_BITS,
    OF_EXPONENT,
    SPAN,
    SPANS,
    THRESHOLD,
    TIES,
    VALUES,
    at_or_after,
    occupied,
    of_group,
    pick,
)
from spectral_kernels.reference import budget as bg

_NOT_FINITE = tl.constexpr(bg.FINITE_BINS << bg.LOW_BITS)


@triton.jit(do_not_specialize=["budgets"])
def find_rank(count, budgets, integers):
    """`budget.find_rank`: the bin of the budget-th largest score, and how many lie above it."""
    group = tl.program_id(0).to(tl.int64)
    count, integers = count + group * BINS, integers + group * INTEGERS
    budget = of_group(budgets, group)
    _, _, entries = occupied(count)
    lane = tl.arange(0, LANES).to(tl.int64)
    ahead = at_or_after(entries)
    exponent = tl.max(tl.where((ahead >= budget) & (entries > 0), lane, -1))
    cut, above = exponent, tl.sum(entries)
    if (exponent >= 0) & (budget > 0):
        within = tl.arange(0, OF_EXPONENT)
        some = tl.load(count + exponent * OF_EXPONENT + within)
        ahead_of_bin = at_or_after(some) + (pick(ahead, exponent) - pick(entries, exponent))
        k = tl.max(tl.where(ahead_of_bin >= budget, within, -1))
        cut = exponent * OF_EXPONENT + k
        above = pick(ahead_of_bin, k) - pick(some, k)
    else:
        cut = cut * 0 - 1
    tl.store(integers + CUT, cut)
    tl.store(integers + ABOVE, above)


@triton.jit(do_not_specialize=["budgets", "sizes"])
def finish_threshold(values, sums, budgets, sizes, integers, thresholds, tie_stops):
    """`budget.find_rank_value`, and which ties are kept: thresholds int32, tie_stops int64.

    tie_stops is final where all ties are kept, or none; else column TIES of integers says how many
    are, and `find_tie` goes on from there. sizes: entries of a group.
    """
    group = tl.program_id(0).to(tl.int64)
    integers = integers + group * INTEGERS
    values, sums = values + group * VALUES, sums + group * (4 * SPANS)
    budget, size = of_group(budgets, group), of_group(sizes, group)
    cut, above = tl.load(integers + CUT), tl.load(integers + ABOVE)
    bits, equal, wanted = cut * 0, size - above, budget - above
    if cut >= 0:
        span = tl.arange(0, SPANS).to(tl.int64)
        entries = tl.load(sums + span)
        ahead = at_or_after(entries)
        chosen = tl.max(tl.where(ahead >= wanted, span, -1))
        within = tl.arange(0, SPAN).to(tl.int64)
        some = tl.load(values + chosen * SPAN + within).to(tl.int64)
        ahead_of_value = at_or_after(some) + (pick(ahead, chosen) - pick(entries, chosen))
        k = tl.max(tl.where(ahead_of_value >= wanted, within, -1))
        bits = (cut << LOW_BITS) + chosen * SPAN + k
        equal = pick(some, k)
        wanted = wanted - (pick(ahead_of_value, k) - equal)
    if budget == 0:
        bits, wanted, equal = bits * 0 + _NOT_FINITE, wanted * 0, equal * 0 + 1
    tl.store(thresholds + group, bits.to(tl.int32))
    stop = tl.where(wanted < equal, 0, size)
    tl.store(tie_stops + group, stop)
    tl.store(integers + TIES, tl.where(wanted < equal, wanted, 0))
    tl.store(integers + THRESHOLD, bits)
