"""Triton kernels of N of every M columns; `reference.nm` is their oracle, bit for bit.

A tile (ROWS, COLUMNS) is seen as groups (ROWS, COLUMNS / OF, OF), OF a power of two. Groups of as
many entries as a thread loads at once lie in its registers, where taking the entry at one place of
each group costs nothing. Other arguments are those of `kernels`.
"""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.elementwise import rescaled, where_kept, words
from spectral_kernels.backends.gpu.triton.kernels import (
    bits_of,
    quad_sums,
    quads_of,
    scored_tile,
    strip_of,
)
from spectral_kernels.reference import budget as bg
from spectral_kernels.reference import nm
from spectral_kernels.reference.laws import Shape
from spectral_kernels.reference.stream import UNIT

_NOT_FINITE = tl.constexpr(bg.FINITE_BINS << bg.LOW_BITS)
_L1 = tl.constexpr(int(Shape.L1))
_UNIT, _UNIT_BITS = tl.constexpr(UNIT), tl.constexpr(UNIT.bit_length() - 1)
_UNIT_FLOAT = tl.constexpr(float(UNIT))
_LEAST, _ORDER_MASK = tl.constexpr(nm.LEAST), tl.constexpr(nm.ORDER_MASK)


@triton.jit
def groups_of(x, OF: tl.constexpr):
    """A tile as (ROWS, groups, OF)."""
    return tl.reshape(x, (x.shape[0], x.shape[1] // OF, OF))


@triton.jit
def place_of(x):
    """The place of each entry of groups in its own, int32, of the shape of x."""
    return tl.broadcast_to(tl.arange(0, x.shape[2])[None, None, :], x.shape)


@triton.jit
def entry_at(x, place, k):
    """The entry at place k of each group, (.., 1). As integers, since these are exact to sum."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.sum(tl.where(place == k, bits, 0), axis=2, keep_dims=True).to(x.dtype, bitcast=True)


@triton.jit
def rank_of(bits, place, OF: tl.constexpr):
    """How many of its group come before an entry: larger ones, and equal ones of earlier columns.

    bits: those of the scores, as int32.
    """
    rank = place * 0
    for k in tl.static_range(OF):
        other = entry_at(bits, place, k)
        rank += ((other > bits) | ((other == bits) & (place > k))).to(tl.int32)
    return rank


@triton.jit
def weights_of(s, SHAPE: tl.constexpr):
    """g(x) of scores in groups, see `nm.weights`."""
    largest = tl.max(s, axis=2, keep_dims=True)
    exponent = (largest.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    scale = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    x = s * scale
    x = tl.where(x >= _LEAST * (largest * scale), x, 0.0)
    return x if SHAPE == _L1 else x * x


@triton.jit
def uncapped(g, capped, budget, place, OF: tl.constexpr):
    """How many are still to be kept of the entries under the cap, and the sum of these in order."""
    open_weight = tl.where(capped != 0, 0.0, g)
    rest = entry_at(open_weight, place, 0)
    for k in tl.static_range(1, OF):
        rest = rest + entry_at(open_weight, place, k)
    return (budget - tl.sum(capped, axis=2, keep_dims=True)).to(tl.float32), rest


@triton.jit
def inclusion(s, place, SHAPE: tl.constexpr, KEEP: tl.constexpr, OF: tl.constexpr):
    """t of scores in groups, int32: kept with probability t / 2^24; see `nm.inclusion`."""
    g = weights_of(s, SHAPE)
    positive = (g > 0).to(tl.int32)
    budget = tl.minimum(tl.sum(positive, axis=2, keep_dims=True), KEEP)
    capped = place * 0
    left, rest = uncapped(g, capped, budget, place, OF)
    for _ in tl.static_range(KEEP):
        capped = capped | (positive & (left * g >= rest).to(tl.int32))
        left, rest = uncapped(g, capped, budget, place, OF)
    c = tl.where(rest > 0, tl.div_rn(left * _UNIT_FLOAT, tl.where(rest > 0, rest, 1.0)), 0.0)
    t = tl.minimum(c * g, _UNIT_FLOAT).to(tl.int32)
    t = tl.where(capped != 0, _UNIT, t)
    spare = budget * _UNIT - tl.sum(t, axis=2, keep_dims=True)
    for k in tl.static_range(OF):
        inside = (place == k) & (t > 0) & (t < _UNIT)
        more = tl.where(inside, tl.minimum(tl.maximum(spare, -t), _UNIT - t), 0)
        t += more
        spare -= tl.sum(more, axis=2, keep_dims=True)
    return t


@triton.jit
def drawn(t, word, place, OF: tl.constexpr):
    """-1 where an entry is drawn, else 0, int32, from its t and word; see `nm.drawn`."""
    key = ((word & _ORDER_MASK).to(tl.int32) << 8) + place
    before = (entry_at(word, place, 0) >> 8).to(tl.int32) + place * 0
    for k in tl.static_range(OF):
        before += tl.where(entry_at(key, place, k) < key, entry_at(t, place, k), 0)
    return -(((before + t) >> _UNIT_BITS) > (before >> _UNIT_BITS)).to(tl.int32)


@triton.jit
def add_counts(counts, kept, nonfinite):
    """counts int64 (2,): entries kept, and scores that are not finite."""
    tl.atomic_add(counts, kept.to(tl.int64), sem="relaxed")
    tl.atomic_add(counts + 1, nonfinite.to(tl.int64), mask=nonfinite > 0, sem="relaxed")


@triton.jit
def keep_largest_of(
    src, out, counts, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    UNIT: tl.constexpr, BASE: tl.constexpr, KEEP: tl.constexpr, OF: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = src for the KEEP largest scores in each group of OF columns, else 0.

    Moves one read and one write of the matrix. counts int64 (2,) gets the nonzeros written added,
    and the scores that are not finite.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    kept = tl.zeros((ROWS * COLUMNS // 4,), tl.int32)
    nonfinite = tl.zeros((ROWS * COLUMNS // 4,), tl.int32)
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        x, a, s, offsets, inside = scored_tile(
            src, i, last, n, j0, 0, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        bits = bits_of(s)
        grouped = groups_of(bits.to(tl.int32, bitcast=True), OF)
        keep = tl.reshape(rank_of(grouped, place_of(grouped), OF) < KEEP, (ROWS, COLUMNS))
        tl.store(out + offsets, tl.where(keep, x, 0.0), mask=inside)
        kept += quad_sums(keep & (a != 0))
        nonfinite += quad_sums(bits >= _NOT_FINITE)
        start += ROWS
    add_counts(counts, tl.sum(kept), tl.sum(nonfinite))


@triton.jit(do_not_specialize=["stream_id", "k0", "k1", "row_offset", "quad_offset"])
def sample_of(
    src, out, counts, m: tl.int64, units: tl.int64, strip: tl.int32,
    left, right, b_weight: tl.float32, a_weight: tl.float32, row, column,
    row_offset: tl.int64, quad_offset: tl.int64,
    stream_id: tl.uint32, k0: tl.uint32, k1: tl.uint32,
    UNIT: tl.constexpr, BASE: tl.constexpr, SHAPE: tl.constexpr, KEEP: tl.constexpr,
    OF: tl.constexpr, RESCALE: tl.constexpr, SKIP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, DEPTHS: tl.constexpr, PRECISION: tl.constexpr,
    NVIDIA: tl.constexpr,
):  # fmt: skip
    """KEEP entries drawn in each group of OF columns, over their probability where RESCALE.

    Moves one read and one write of the matrix. The matrix lies in the stream as in
    `kernels.sample`; counts as in `keep_largest_of`.
    """
    n, j0, start, last = strip_of(m, units, strip, UNIT, COLUMNS)
    quad = quads_of(quad_offset, j0, COLUMNS, src.dtype.element_ty.primitive_bitwidth)
    stream, k0, k1 = tl.cast(stream_id, tl.uint32), tl.cast(k0, tl.uint32), tl.cast(k1, tl.uint32)
    kept = tl.zeros((ROWS * COLUMNS // 4,), tl.int32)
    nonfinite = tl.zeros((ROWS * COLUMNS // 4,), tl.int32)
    while start < last:
        i = start + tl.arange(0, ROWS).to(tl.int64)
        x, a, s, offsets, inside = scored_tile(
            src, i, last, n, j0, -SKIP, left, right, b_weight, a_weight, row, column,
            BASE, ROWS, COLUMNS, DEPTH, DEPTHS, PRECISION,
        )  # fmt: skip
        grouped = groups_of(s, OF)
        place = place_of(grouped)
        grouped_t = inclusion(grouped, place, SHAPE, KEEP, OF)
        word = words((row_offset + i)[:, None], quad, stream, k0, k1, ROWS, COLUMNS)
        ahead = tl.reshape(drawn(grouped_t, groups_of(word, OF), place, OF), (ROWS, COLUMNS))
        t = tl.reshape(grouped_t, (ROWS, COLUMNS))
        value = rescaled(x, a, t, 1.0, False, NVIDIA) if RESCALE else x
        tl.store(out + offsets, where_kept(ahead, value, x.dtype, NVIDIA), mask=inside)
        kept -= quad_sums(ahead)
        nonfinite += quad_sums(bits_of(s) >= _NOT_FINITE)
        start += ROWS
    add_counts(counts, tl.sum(kept), tl.sum(nonfinite))
