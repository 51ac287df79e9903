"""CPU kernels of N of every M; `nm` says what they must return.

A run of a row is turned into lanes: `of` rows of scratch, one for each place in the group, so that
every step is a plain loop over the run's groups, which LLVM vectorises whatever N and M are.
"""

import numpy as np
from numba import prange

from spectral_kernels._numba import compiled
from spectral_kernels.backends.cpu.chunks import CHUNK, NATIVE, draw_and_store, words
from spectral_kernels.backends.cpu.kernels import NO_SIGN, line, place, scored_chunk
from spectral_kernels.reference import nm
from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.stream import UNIT

_L1 = int(Shape.L1)
_UNIT = np.int32(UNIT)
_UNIT_BITS = np.int32(24)
_ORDER_MASK = np.uint32(nm.ORDER_MASK)
_INFINITY = np.uint32(0x7F800000)
_LEAST = np.float32(nm.LEAST)
#: The law that makes t the score itself, and a word so large that only a certain entry is kept.
_AS_IT_IS = np.array([1, 0, 0, 1], np.float32)
_NEVER = np.uint32(0xFFFFFFFF)


@compiled
def spread(values, of, groups, lanes):
    """lanes[k * groups + g] = values[g * of + k]."""
    if of == 4:  # a constant width lets LLVM vectorise the loop
        lane0, lane1 = lanes[:groups], lanes[groups : 2 * groups]
        lane2, lane3 = lanes[2 * groups : 3 * groups], lanes[3 * groups : 4 * groups]
        for g in range(groups):
            lane0[g], lane1[g] = values[4 * g], values[4 * g + 1]
            lane2[g], lane3[g] = values[4 * g + 2], values[4 * g + 3]
        return
    for g in range(groups):
        for k in range(of):
            lanes[k * groups + g] = values[g * of + k]


@compiled
def join(lanes, of, groups, values):
    """values[g * of + k] = lanes[k * groups + g]: back from `spread`."""
    if of == 4:
        lane0, lane1 = lanes[:groups], lanes[groups : 2 * groups]
        lane2, lane3 = lanes[2 * groups : 3 * groups], lanes[3 * groups : 4 * groups]
        for g in range(groups):
            values[4 * g], values[4 * g + 1] = lane0[g], lane1[g]
            values[4 * g + 2], values[4 * g + 3] = lane2[g], lane3[g]
        return
    for g in range(groups):
        for k in range(of):
            values[g * of + k] = lanes[k * groups + g]


@compiled
def count_not_finite(bits, size):
    """How many scores are infinite or NaN."""
    found = np.int32(0)
    for k in range(size):
        found += np.int32(bits[k] & NO_SIGN >= _INFINITY)
    return found


@compiled
def ranks(lanes, of, groups, rank):
    """rank: how many of its group come before an entry; lanes hold the bits of scores."""
    rank[: of * groups] = 0
    for a in range(of):
        lane_a, rank_a = lanes[a * groups : (a + 1) * groups], rank[a * groups : (a + 1) * groups]
        for b in range(a + 1, of):
            lane_b = lanes[b * groups : (b + 1) * groups]
            rank_b = rank[b * groups : (b + 1) * groups]
            for g in range(groups):
                later = np.int32(lane_b[g] > lane_a[g])
                rank_a[g] += later
                rank_b[g] += np.int32(1) - later


@compiled
def store_largest(x, kind, rank, keep, size, y):
    """y = x where fewer than `keep` of the group come before it, else 0; counts the nonzero."""
    zero = x.dtype.type(0)
    # The sign of a zero in a 16-bit format, which travels as an integer.
    minus_zero = zero if kind == NATIVE else x.dtype.type(0x8000)
    kept = np.int32(0)
    for k in range(size):
        value = x[k] if rank[k] < keep else zero
        y[k] = value
        kept += np.int32(value not in (zero, minus_zero))
    return kept


@compiled(parallel=True)
def keep_largest(src, out, kind, m, n, base, factors, weights, row, column, keep, of, tasks):
    """out = src for the `keep` largest scores in each group of `of` columns, else 0.

    Returns the number of entries of `out` that are not zero, and of scores that are not finite.
    """
    run = CHUNK // of * of
    per_row = (n + run - 1) // run
    units = m * per_row
    kept, nonfinite = np.zeros(tasks, np.int64), np.zeros(tasks, np.int64)
    for task in prange(tasks):
        a, s, scratch = line(), line(), line()
        lanes = np.empty(CHUNK, np.uint32)
        rank, in_place = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            i, chunk = place(unit, per_row, m, factors)
            j = chunk // CHUNK * run
            size = min(run, n - j)
            groups = size // of
            _, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            bits = scores.view(np.uint32)
            nonfinite[task] += count_not_finite(bits, size)
            spread(bits, of, groups, lanes)
            for k in range(size):
                lanes[k] = lanes[k] & NO_SIGN
            ranks(lanes, of, groups, rank)
            join(rank, of, groups, in_place)
            start = i * n + j
            x, y = src[start : start + size], out[start : start + size]
            kept[task] += store_largest(x, kind, in_place, np.int32(keep), size, y)
    return kept.sum(), nonfinite.sum()


@compiled
def weigh(shape, of, groups, lanes, x):
    """x: the weights g of scores, given up to sign in lanes; see `nm.weights`."""
    size = of * groups
    largest = np.zeros(groups, np.float32)
    for k in range(of):
        lane = lanes[k * groups : (k + 1) * groups]
        for g in range(groups):
            largest[g] = max(largest[g], abs(lane[g]))
    bits = largest.view(np.uint32)
    scales = np.empty(groups, np.uint32)
    for g in range(groups):
        exponent = min(max(bits[g] >> np.uint32(23), np.uint32(1)), np.uint32(253))
        scales[g] = (np.uint32(254) - exponent) << np.uint32(23)
    scale = scales.view(np.float32)
    for k in range(of):
        lane, weight = lanes[k * groups : (k + 1) * groups], x[k * groups : (k + 1) * groups]
        for g in range(groups):
            value = abs(lane[g]) * scale[g]
            weight[g] = value if value >= _LEAST * (largest[g] * scale[g]) else np.float32(0)
    if shape != _L1:
        for k in range(size):
            x[k] = x[k] * x[k]


@compiled
def cap(keep, of, groups, x, t, left, rest):
    """t = 2^24 for entries that are certain, else 0.

    left: how many of each group are still to be kept; rest: the sum of the weights of the others.
    """
    t[: of * groups] = 0
    left[:] = 0
    for k in range(of):
        weight = x[k * groups : (k + 1) * groups]
        for g in range(groups):
            left[g] += np.int32(weight[g] > 0)
    for g in range(groups):
        left[g] = min(left[g], np.int32(keep))
    for step in range(keep + 1):
        rest[:] = 0
        for k in range(of):
            weight, certain = x[k * groups : (k + 1) * groups], t[k * groups : (k + 1) * groups]
            for g in range(groups):
                rest[g] = rest[g] + (weight[g] if certain[g] == 0 else np.float32(0))
        if step == keep:
            break
        found = np.int32(0)
        quota = left.astype(np.float32)
        for k in range(of):
            weight, certain = x[k * groups : (k + 1) * groups], t[k * groups : (k + 1) * groups]
            for g in range(groups):
                over = weight[g] > 0 and certain[g] == 0 and quota[g] * weight[g] >= rest[g]
                certain[g] = _UNIT if over else certain[g]
                left[g] -= np.int32(over)
                found += np.int32(over)
        if found == 0:
            break


@compiled
def solve(keep, of, groups, x, t, left, rest):
    """t of each entry, of its weight x; see `nm.inclusion`."""
    cap(keep, of, groups, x, t, left, rest)
    spare = np.zeros(groups, np.int32)
    for g in range(groups):
        # `left` and `spare` are those of the entries that are not certain.
        spare[g] = left[g] * _UNIT
        c = np.float32(left[g]) * np.float32(UNIT) / rest[g]
        rest[g] = c if rest[g] > 0 else np.float32(0)
    for k in range(of):
        weight, step = x[k * groups : (k + 1) * groups], t[k * groups : (k + 1) * groups]
        for g in range(groups):
            drawn = np.int32(min(np.floor(rest[g] * weight[g]), np.float32(UNIT)))
            is_open = step[g] == 0
            spare[g] -= drawn if is_open else np.int32(0)
            step[g] = drawn if is_open else step[g]
    for k in range(of):
        step = t[k * groups : (k + 1) * groups]
        for g in range(groups):
            inside = step[g] > 0 and step[g] < _UNIT
            more = min(max(spare[g], -step[g]), _UNIT - step[g])
            more = more if inside else np.int32(0)
            step[g] += more
            spare[g] -= more


@compiled
def lay(of, groups, t, word, before):
    """before: where the interval of each entry begins; see `nm.drawn`."""
    for k in range(of):
        lane = before[k * groups : (k + 1) * groups]
        for g in range(groups):
            lane[g] = np.int32(word[g] >> np.uint32(8))
    for k in range(of * groups):
        word[k] = word[k] & _ORDER_MASK
    for a in range(of):
        span_a = slice(a * groups, (a + 1) * groups)
        order_a, step_a, before_a = word[span_a], t[span_a], before[span_a]
        for b in range(a + 1, of):
            span_b = slice(b * groups, (b + 1) * groups)
            order_b, step_b, before_b = word[span_b], t[span_b], before[span_b]
            for g in range(groups):
                swapped = order_b[g] < order_a[g]
                before_b[g] += np.int32(0) if swapped else step_a[g]
                before_a[g] += step_b[g] if swapped else np.int32(0)


@compiled(parallel=True)
def sample(
    src, out, kind, m, n, base, factors, weights, row, column, keep, of, shape, rescale,
    k0, k1, stream, row_offset, column_offset, tasks,
):  # fmt: skip
    """Draw `keep` entries in each group of `of` columns, over their probability if `rescale`.

    Returns the number of entries kept, and of scores that are not finite.
    """
    run = CHUNK // of * of
    per_row = (n + run - 1) // run
    units = m * per_row
    kept, nonfinite = np.zeros(tasks, np.int64), np.zeros(tasks, np.int64)
    for task in prange(tasks):
        a, s, scratch, lanes, x, p = line(), line(), line(), line(), line(), line()
        u, word = np.empty(CHUNK + 8, np.uint32), np.empty(CHUNK, np.uint32)
        t, before = np.empty(CHUNK, np.int32), np.empty(CHUNK, np.int32)
        for unit in range(units * task // tasks, units * (task + 1) // tasks):
            i, chunk = place(unit, per_row, m, factors)
            j = chunk // CHUNK * run
            size = min(run, n - j)
            groups = size // of
            left, rest = np.empty(groups, np.int32), np.empty(groups, np.float32)
            entries, scores = scored_chunk(
                src, kind, n, i, j, size, base, factors, weights, row, column, a, s, scratch
            )
            nonfinite[task] += count_not_finite(scores.view(np.uint32), size)
            spread(scores, of, groups, lanes)
            weigh(shape, of, groups, lanes, x)
            solve(keep, of, groups, x, t, left, rest)
            first = (j + column_offset) // 4
            skip = j + column_offset - 4 * first
            words(i + row_offset, first, (skip + size + 3) // 4, stream, k0, k1, u)
            spread(u[skip:], of, groups, word)
            lay(of, groups, t, word, before)
            for k in range(size):
                keeps = (before[k] + t[k]) >> _UNIT_BITS > before[k] >> _UNIT_BITS
                word[k] = np.uint32(0) if keeps else _NEVER
                x[k] = np.float32(t[k])
            join(word, of, groups, u)
            join(x, of, groups, p)
            start = i * n + j
            source, target = src[start : start + size], out[start : start + size]
            kept[task] += draw_and_store(
                _L1, _AS_IT_IS, source, size, entries, p, u, rescale, kind, target, s, scratch
            )
    return kept.sum(), nonfinite.sum()
