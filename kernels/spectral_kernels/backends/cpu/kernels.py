"""The parallel CPU kernels. Each reads the matrix once; the last two also write the result once.

`src` and `out` are the (m, n) matrix, row-major, as flat arrays; `factors` are left (m, k) and
right (k, n), both flat, and k, for B = left @ right, or empty and 0; `row` and `column` are the
vectors of the score, or empty. A unit of work is one chunk of one row; units are dealt out to
`tasks` equal runs.
"""

import numpy as np
from numba import prange

from spectral_kernels._numba import compiled
from spectral_kernels.backends.cpu.chunks import (
    CHUNK,
    NATIVE,
    draw_and_store,
    load,
    low_rank_chunk,
    score,
    words,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference.laws import Shape

_L1, _L2, _HYBRID = int(Shape.L1), int(Shape.L2), int(Shape.HYBRID)
_MAXIMUM, _TRIMMED = int(Shape.MAXIMUM), int(Shape.TRIMMED)
_LOW_BITS = np.uint32(bg.LOW_BITS)
_LOW_MASK = np.uint32(bg.LOW_MASK)
_BINS = bg.BINS
NO_SIGN = np.uint32(0x7FFFFFFF)
#: Rows that are worked on together under a low-rank score.
STRIP = 32
_VALUES = 1 << bg.LOW_BITS
# A packed bin: 22 bits of count over 42 bits of sum, enough for 2^22 entries of 18 low bits.
_SUM_BITS, _SUM_MASK = np.uint64(42), np.uint64((1 << 42) - 1)
_ONE = np.uint64(1 << 42)
_MAX_HELD = (1 << 22) - 1


@compiled
def line():
    """Scratch for one chunk. (Rows of one 2-D array would not be typed as contiguous.)"""
    return np.empty(CHUNK, np.float32)


@compiled(inline="always")
def scored_chunk(src, kind, n, i, j, count, base, factors, weights, row, column, a, s, scratch):
    """The entries of a chunk as float32, and their scores up to sign; a and s are room for them."""
    start = i * n + j
    entries = load(src[start : start + count], kind, count, a, a.view(np.uint32), scratch)
    weight = row[i] if row.size > 0 else np.float32(1)
    left, right, rank = factors
    if rank > 0:
        low_rank_chunk(left, right, rank, n, i, j, count, scratch)
    by_column = column[j : j + count]
    scores = score(base, entries, scratch, count, weights[0], weights[1], weight, by_column, s)
    return entries, scores


@compiled
def place(unit, per_row, m, factors):
    """Row and first column of a unit of work.

    Units follow the rows; with a low rank they go down a strip of rows first, so that the part of
    the right factor that they share stays in the cache.
    """
    if factors[2] == 0:
        return unit // per_row, unit % per_row * CHUNK
    first = unit // (STRIP * per_row) * STRIP
    rows = min(STRIP, m - first)
    rest = unit % (STRIP * per_row)
    return first + rest % rows, rest // rows * CHUNK


@compiled
def unpack(packed, count, low):
    """Move the packed counts and sums to where they cannot overflow."""
    for b in range(_BINS):
        count[b] += np.int64(packed[b] >> _SUM_BITS)
        low[b] += np.int64(packed[b] & _SUM_MASK)
        packed[b] = 0


@compiled(parallel=True)
def histogram(src, kind, m, n, base, factors, weights, row, column, tasks):
    """(count, low), int64 (8192,) each, zeros left out."""
    per_row = (n + CHUNK - 1) // CHUNK
    units = m * per_row
    counts = np.zeros((tasks, _BINS), np.int64)
    lows = np.zeros((tasks, _BINS), np.int64)
    for task in prange(tasks):
        a, s, scratch = line(), line(), line()
        # One addition an entry: the count in the upper bits, the sum of the low bits under it.
        packed = np.zeros(_BINS, np.uint64)
        bins, parts = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint64)
        zeros, held = 0, 0
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            i, j = place(unit, per_row, m, factors)
            size = min(CHUNK, n - j)
            _, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            bits = scores.view(np.uint32)
            # The additions cannot be vectorised; all before them is.
            for k in range(size):
                # Without its sign not even a NaN lies outside the table.
                magnitude = bits[k] & NO_SIGN
                bins[k] = magnitude >> _LOW_BITS
                parts[k] = _ONE + np.uint64(magnitude & _LOW_MASK)
                zeros += magnitude == 0
            for k in range(size):
                packed[bins[k]] += parts[k]
            held += size
            if held > _MAX_HELD - CHUNK:
                unpack(packed, counts[task], lows[task])
                held = 0
        unpack(packed, counts[task], lows[task])
        counts[task, 0] -= zeros
    return counts.sum(axis=0), lows.sum(axis=0)


@compiled(parallel=True)
def gather(src, kind, m, n, base, factors, weights, row, column, cut, room, tasks):
    """The low 18 bits of the entries of bin `cut`, uint32 (tasks, room), and how many a task found.

    A task that finds more than `room` goes on counting, but keeps no more.
    """
    per_row = (n + CHUNK - 1) // CHUNK
    units = m * per_row
    found, held = np.empty((tasks, room), np.uint32), np.zeros(tasks, np.int64)
    for task in prange(tasks):
        a, s, scratch = line(), line(), line()
        mine = found[task]
        eights = np.empty(CHUNK // 8 + 1, np.uint64)
        hits = eights.view(np.uint8)
        at = 0
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            i, j = place(unit, per_row, m, factors)
            size = min(CHUNK, n - j)
            _, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            bits = scores.view(np.uint32)
            # Few entries lie in the bin, so eight at a time are skipped where none does.
            hits[size : size + 8] = 0
            for k in range(size):
                hits[k] = (bits[k] & NO_SIGN) >> _LOW_BITS == cut
            for eight in range((size + 7) // 8):
                if eights[eight] != 0:
                    for k in range(8 * eight, 8 * eight + 8):
                        if hits[k]:
                            if at < room:
                                mine[at] = bits[k] & _LOW_MASK
                            at += 1
        held[task] = at
    return found, held


@compiled(parallel=True)
def refine(src, kind, m, n, base, factors, weights, row, column, cut, tasks):
    """How many entries of bin `cut` have each value of the low 18 bits; int64 (2^18,).

    For a bin that ties make crowded. A task counts in uint32, so it must see fewer than 2^32
    entries.
    """
    per_row = (n + CHUNK - 1) // CHUNK
    units = m * per_row
    counts = np.zeros((tasks, _VALUES), np.uint32)
    for task in prange(tasks):
        a, s, scratch = line(), line(), line()
        count = counts[task]
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            i, j = place(unit, per_row, m, factors)
            size = min(CHUNK, n - j)
            _, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            bits = scores.view(np.uint32)
            for k in range(size):
                if (bits[k] & NO_SIGN) >> _LOW_BITS == cut:
                    count[bits[k] & _LOW_MASK] += 1
    total = np.zeros(_VALUES, np.int64)
    for task in range(tasks):
        total += counts[task]
    if cut == 0:
        total[0] = 0
    return total


@compiled(parallel=True)
def count_ties(src, kind, m, n, base, factors, weights, row, column, threshold):
    """How many scores of each row have the bits `threshold`; int64 (m,)."""
    ties = np.zeros(m, np.int64)
    for i in prange(m):
        a, s, scratch = line(), line(), line()
        found = 0
        for j in range(0, n, CHUNK):
            size = min(CHUNK, n - j)
            _, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            bits = scores.view(np.uint32)
            for k in range(size):
                found += bits[k] & NO_SIGN == threshold
        ties[i] = found
    return ties


@compiled
def tie_column(src, kind, n, i, base, factors, weights, row, column, threshold, wanted):
    """The column just after the `wanted`-th score of row i that equals `threshold`."""
    a, s, scratch = line(), line(), line()
    found = 0
    for j in range(0, n, CHUNK):
        size = min(CHUNK, n - j)
        _, scores = scored_chunk(
            src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
        )
        bits = scores.view(np.uint32)
        for k in range(size):
            found += bits[k] & NO_SIGN == threshold
            if found == wanted:
                return j + k + 1
    return n


@compiled
def select(x, kind, bits, threshold, ties, first, last, y):
    """y = x where the score is over the threshold, or equals it and `ties`; counts the nonzero."""
    least = np.uint32(threshold) + np.uint32(0 if ties else 1)
    zero = x.dtype.type(0)
    # The sign of a zero in a 16-bit format, which travels as an integer.
    minus_zero = zero if kind == NATIVE else x.dtype.type(0x8000)
    kept = np.int32(0)
    for k in range(np.uint64(first), np.uint64(last)):
        keep = bits[k] & NO_SIGN >= least
        y[k] = x[k] if keep else zero
        kept += np.int32(keep and x[k] != zero and x[k] != minus_zero)
    return kept


@compiled(parallel=True)
def keep_largest(
    src, out, kind, m, n, base, factors, weights, row, column, thresholds, tie_stops, by_row, tasks
):
    """out = src where the score is over its group's threshold, or ties with it early enough.

    A tie is kept at an index under the group's `tie_stop`: the flat index where the group is the
    tensor, the column where it is a row. Returns the number of entries of `out` that are not zero.
    """
    per_row = (n + CHUNK - 1) // CHUNK
    units = m * per_row
    kept = np.zeros(tasks, np.int64)
    for task in prange(tasks):
        a, s, scratch = line(), line(), line()
        total = 0
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            i, j = place(unit, per_row, m, factors)
            size = min(CHUNK, n - j)
            _, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            bits = scores.view(np.uint32)
            start = i * n + j
            threshold = thresholds[i if by_row else 0]
            # Ties before tie_stop are kept: there the comparison is >=, after it >.
            early = min(max(tie_stops[i if by_row else 0] - (j if by_row else start), 0), size)
            x, y = src[start : start + size], out[start : start + size]
            total += select(x, kind, bits, threshold, True, 0, early, y)
            total += select(x, kind, bits, threshold, False, early, size, y)
        kept[task] = total
    return kept.sum()


@compiled(parallel=True)
def sample(
    src, out, kind, m, n, base, factors, weights, row, column, laws, by_row, shape, rescale,
    k0, k1, stream, row_offset, column_offset, tasks,
):  # fmt: skip
    """Score, law, draw and value in one pass; laws is float32 (groups, 4): C, alpha, beta, scale.

    Returns the number of entries kept.
    """
    per_row = (n + CHUNK - 1) // CHUNK
    units = m * per_row
    kept = np.zeros(tasks, np.int64)
    for task in prange(tasks):
        a, s, t, scratch = line(), line(), line(), line()
        u = np.empty(CHUNK + 8, np.uint32)
        total = 0
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            i, j = place(unit, per_row, m, factors)
            size = min(CHUNK, n - j)
            entries, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            first = (j + column_offset) // 4
            skip = j + column_offset - 4 * first
            words(i + row_offset, first, (skip + size + 3) // 4, stream, k0, k1, u)
            start = i * n + j
            x, y = src[start : start + size], out[start : start + size]
            draw, law = u[skip:], laws[i if by_row else 0]
            if shape == _L1:
                total += draw_and_store(
                    _L1, law, x, size, entries, scores, draw, rescale, kind, y, t, scratch
                )
            elif shape == _L2:
                total += draw_and_store(
                    _L2, law, x, size, entries, scores, draw, rescale, kind, y, t, scratch
                )
            elif shape == _HYBRID:
                total += draw_and_store(
                    _HYBRID, law, x, size, entries, scores, draw, rescale, kind, y, t, scratch
                )
            elif shape == _MAXIMUM:
                total += draw_and_store(
                    _MAXIMUM, law, x, size, entries, scores, draw, rescale, kind, y, t, scratch
                )
            else:
                total += draw_and_store(
                    _TRIMMED, law, x, size, entries, scores, draw, rescale, kind, y, t, scratch
                )
        kept[task] = total
    return kept.sum()
