"""CPU kernels of the row group: each row is a budget of its own, solved while it is in cache."""

import math

import numpy as np
from numba import prange

from spectral_kernels._numba import compiled
from spectral_kernels.backends.cpu.chunks import CHUNK, load
from spectral_kernels.backends.cpu.kernels import NO_SIGN, line, scored_chunk
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.rows import fixed_point_shift

_LOW_BITS = np.uint32(bg.LOW_BITS)
_LOW_MASK = np.uint32(bg.LOW_MASK)
_BINS = bg.BINS
_NOT_FINITE = np.uint32(bg.FINITE_BINS << bg.LOW_BITS)


@compiled
def score_row(src, kind, n, i, base, factors, weights, row, column, a, s, scratch, row_bits):
    """The scores of row i, as bits."""
    for j in range(0, n, CHUNK):
        size = min(CHUNK, n - j)
        _, scores = scored_chunk(
            src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
        )
        bits = scores.view(np.uint32)
        for k in range(size):
            row_bits[j + k] = (
                bits[k] & NO_SIGN
            )  # without its sign a NaN too lies inside the histogram


@compiled
def bin_row(row_bits, count, low):
    """Add the scores of a row to a clean histogram; zeros are left out."""
    for k in range(row_bits.size):
        b = row_bits[k] >> _LOW_BITS
        count[b] += 1
        low[b] += np.int64(row_bits[k] & _LOW_MASK)
    for k in range(row_bits.size):
        count[0] -= row_bits[k] == 0


@compiled
def not_finite(row_bits):
    """How many scores of a row are infinite or NaN."""
    found = 0
    for k in range(row_bits.size):
        found += row_bits[k] >= _NOT_FINITE
    return found


@compiled
def clear_row(row_bits, count, low):
    """Zero the bins that `bin_row` touched, and no others: there are far more bins than entries."""
    for k in range(row_bits.size):
        b = row_bits[k] >> _LOW_BITS
        count[b] = 0
        low[b] = 0
    count[0] = 0


@compiled
def lows_in_bin(row_bits, cut, size):
    """The low bits of the `size` scores of a row, not 0, in bin `cut`, ascending."""
    lows = np.empty(size, np.int64)
    found = 0
    for k in range(row_bits.size):
        if row_bits[k] >> _LOW_BITS == cut and row_bits[k] != 0:
            lows[found] = np.int64(row_bits[k] & _LOW_MASK)
            found += 1
    lows.sort()
    return lows


@compiled
def solve_row(row_bits, count, low, m, shape, parameter, budget):
    """(C, alpha, beta, scale) of one group of scores."""
    bin_row(row_bits, count, low)
    alpha, beta, first, last, top = bg.prepare(
        count, low, shape, parameter, m, row_bits.size, budget
    )
    solved = (0.0, alpha, beta, 1.0)
    if first <= last:
        c, cut, above, below = bg.solve_bins(
            count, low, first, last, top, shape, alpha, beta, budget
        )
        if cut >= 0:
            lows = lows_in_bin(row_bits, cut, count[cut])
            ones = np.ones(lows.size, np.int64)
            c = bg.solve_values(lows, ones, cut, above, below, top, shape, alpha, beta, budget)
        solved = bg.kernel_parameters(c, top, shape, alpha, beta)
    clear_row(row_bits, count, low)
    return solved


@compiled(parallel=True)
def row_laws(src, kind, m, n, base, factors, weights, row, column, shape, parameter, budget, tasks):
    """(C, alpha, beta, scale) of each row, float32 (m, 4), and how many scores are not finite."""
    laws = np.empty((m, 4), np.float32)
    nonfinite = np.zeros(tasks, np.int64)
    for task in prange(tasks):
        a, s, scratch = line(), line(), line()
        row_bits = np.empty(n, np.uint32)
        count, low = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
        for i in range(m * task // tasks, m * (task + 1) // tasks):
            score_row(src, kind, n, i, base, factors, weights, row, column, a, s, scratch, row_bits)
            nonfinite[task] += not_finite(row_bits)
            laws[i] = solve_row(row_bits, count, low, 1, shape, parameter, budget)
    return laws, nonfinite.sum()


@compiled(parallel=True)
def row_thresholds(src, kind, m, n, base, factors, weights, row, column, budget, tasks):
    """Per row the budget-th largest score, as bits, and the column before which ties stay.

    Also how many scores are not finite.
    """
    thresholds = np.empty(m, np.uint32)
    nonfinite = np.zeros(tasks, np.int64)
    tie_stops = np.empty(m, np.int64)
    for task in prange(tasks):
        a, s, scratch = line(), line(), line()
        row_bits = np.empty(n, np.uint32)
        count, low = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
        for i in range(m * task // tasks, m * (task + 1) // tasks):
            score_row(src, kind, n, i, base, factors, weights, row, column, a, s, scratch, row_bits)
            nonfinite[task] += not_finite(row_bits)
            bin_row(row_bits, count, low)
            b, above = bg.find_rank(count, budget)
            threshold = np.uint32(0)
            wanted = budget - above
            if b >= 0:
                lows = lows_in_bin(row_bits, b, count[b])
                value = lows[lows.size - wanted]
                threshold = np.uint32((b << bg.LOW_BITS) + value)
                wanted -= (lows > value).sum()
            clear_row(row_bits, count, low)
            thresholds[i] = threshold
            found = 0
            tie_stops[i] = n
            for k in range(n):
                found += row_bits[k] == threshold
                if found == wanted:
                    tie_stops[i] = k + 1 if wanted > 0 else 0
                    break
    return thresholds, tie_stops, nonfinite.sum()


@compiled(parallel=True)
def row_l1(src, kind, m, n):
    """||A_i||_1 of each row, summed in integers; float64 (m,)."""
    sums = np.zeros(m, np.float64)
    for i in prange(m):
        a, scratch = line(), line()
        largest = np.float32(0)
        for j in range(0, n, CHUNK):
            size = min(CHUNK, n - j)
            start = i * n + j
            entries = load(src[start : start + size], kind, size, a, a.view(np.uint32), scratch)
            for k in range(size):
                largest = max(largest, abs(entries[k]))
        if largest > 0:
            shift = fixed_point_shift(n, math.frexp(np.float64(largest))[1])
            factor_high = math.ldexp(1.0, shift // 2)
            factor_low = math.ldexp(1.0, shift - shift // 2)
            total = np.int64(0)
            for j in range(0, n, CHUNK):
                size = min(CHUNK, n - j)
                start = i * n + j
                entries = load(src[start : start + size], kind, size, a, a.view(np.uint32), scratch)
                for k in range(size):
                    total += np.int64(np.float64(abs(entries[k])) * factor_high * factor_low)
            sums[i] = math.ldexp(np.float64(total), -shift)
    return sums
