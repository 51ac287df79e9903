"""What every CPU kernel does to one chunk of a row, in scratch arrays that stay in the L1 cache.

A chunk is at most CHUNK consecutive entries of one row. Each step is one plain loop over the chunk,
which LLVM vectorises; the flags (kind, base, shape) are tested once a chunk, so one compiled kernel
serves the whole table of scores and laws. Products are rounded one by one: Numba makes fused
multiply-adds only where it is told to.

Arrays arrive as slices that start at the chunk. An index that is a sum may be negative as far as
the compiler knows, and would turn vector loads into gathers. dtype and `kind` tell the storage:
16-bit formats travel as uint16.
"""

import numpy as np
from numba import types
from numba.extending import overload

from spectral_kernels._numba import compiled
from spectral_kernels.reference.laws import Base, Shape
from spectral_kernels.reference.stream import KEY_INCREMENTS, MULTIPLIERS, ROUNDS, UNIT, WORD_MASK

CHUNK = 1024
NATIVE, FLOAT16, BFLOAT16 = 0, 1, 2

_MAGNITUDE, _PRINCIPAL = int(Base.MAGNITUDE), int(Base.PRINCIPAL)
_ALIGNED, _MIXTURE = int(Base.ALIGNED), int(Base.MIXTURE)
_M0, _M1 = np.uint64(MULTIPLIERS[0]), np.uint64(MULTIPLIERS[1])
_W0, _W1 = np.uint64(KEY_INCREMENTS[0]), np.uint64(KEY_INCREMENTS[1])
_MASK, _HALF_WORD = np.uint64(WORD_MASK), np.uint64(32)
_ROUNDS = ROUNDS
_WORD_SHIFT = np.uint32(8)
_UNIT = np.float32(UNIT)
_UNIT_STEP = np.float32(1.0 / UNIT)
_FLOAT16_SHIFT = np.float32(2.0**112)


def load(src, kind, count, a, bits, scratch):
    """The entries as float32: src itself where it is, else a[:count]; `bits` is a as uint32."""
    raise RuntimeError("only compiled code calls this; its overloads are below")


@overload(load)
def _load(src, kind, count, a, bits, scratch):
    if src.dtype == types.uint16:

        def load16(src, kind, count, a, bits, scratch):
            if kind == BFLOAT16:
                for k in range(count):
                    bits[k] = np.uint32(src[k]) << np.uint32(16)
                return a
            # A float16's exponent and fraction, moved to float32's place, are its value times
            # 2^-112, subnormals included; infinities and NaN are put back by hand.
            for k in range(count):
                bits[k] = (np.uint32(src[k]) & np.uint32(0x7FFF)) << np.uint32(13)
            for k in range(count):
                scratch[k] = a[k] * _FLOAT16_SHIFT
            magnitude = scratch.view(np.uint32)
            for k in range(count):
                half = np.uint32(src[k])
                special = np.uint32(0)
                if half & np.uint32(0x7C00) == np.uint32(0x7C00):
                    special = np.uint32(0x7F800000)
                bits[k] = magnitude[k] | special | ((half & np.uint32(0x8000)) << np.uint32(16))
            return a

        return load16

    if src.dtype == types.float32:

        def load_plain(src, kind, count, a, bits, scratch):
            return src

        return load_plain

    def load_native(src, kind, count, a, bits, scratch):
        for k in range(count):
            a[k] = np.float32(src[k])
        return a

    return load_native


@compiled
def low_rank_chunk(left, right, rank, n, i, j, count, b):
    """b[:count] = B[i, j:j + count], B = left @ right, summed in order of rank, product by product.

    The order is that of `oracle.low_rank`, so that B has the same bits whatever the chunk; eight
    terms at a time, since every term would otherwise load and store b.
    """
    b[:count] = np.float32(0)
    first = i * rank
    eights = rank // 8 * 8
    for q in range(0, eights, 8):
        l0, l1, l2, l3, l4, l5, l6, l7 = (
            left[first + q], left[first + q + 1], left[first + q + 2], left[first + q + 3],
            left[first + q + 4], left[first + q + 5], left[first + q + 6], left[first + q + 7],
        )  # fmt: skip
        at = q * n + j
        r0, r1 = right[at : at + count], right[at + n : at + n + count]
        r2, r3 = right[at + 2 * n : at + 2 * n + count], right[at + 3 * n : at + 3 * n + count]
        r4, r5 = right[at + 4 * n : at + 4 * n + count], right[at + 5 * n : at + 5 * n + count]
        r6, r7 = right[at + 6 * n : at + 6 * n + count], right[at + 7 * n : at + 7 * n + count]
        for k in range(count):
            x = (((b[k] + l0 * r0[k]) + l1 * r1[k]) + l2 * r2[k]) + l3 * r3[k]
            b[k] = (((x + l4 * r4[k]) + l5 * r5[k]) + l6 * r6[k]) + l7 * r7[k]
    for q in range(eights, rank):
        factor = left[first + q]
        terms = right[q * n + j : q * n + j + count]
        for k in range(count):
            b[k] = b[k] + factor * terms[k]


@compiled
def score(base, a, b, count, b_weight, a_weight, row, column, s):
    """The scores of entries a, from their low-rank values b and column weights: a or s[:count].

    The sign of a score means nothing: it may be that of the entry or of a NaN.
    """
    if base == _MAGNITUDE and column.size == 0 and row == np.float32(1):
        return a
    if base == _PRINCIPAL:
        for k in range(count):
            s[k] = abs(b[k]) if a[k] != 0 else np.float32(0)
    elif base == _ALIGNED:
        for k in range(count):
            product = a[k] * b[k]
            s[k] = np.float32(0) if a[k] == 0 or product <= 0 else product
    elif base == _MIXTURE:
        for k in range(count):
            low = b[k] * b_weight
            full = a[k] * a_weight
            s[k] = np.sqrt(low * low + full * full) if a[k] != 0 else np.float32(0)
    else:
        for k in range(count):
            s[k] = abs(a[k])
    if column.size > 0:
        for k in range(count):
            s[k] = s[k] * column[k]
    if row != np.float32(1):
        for k in range(count):
            s[k] = s[k] * row
    return s


@compiled
def l1(x, alpha, beta):
    """x. This and the next are g of each shape; `alpha` and `beta` are its parameters."""
    return x


@compiled
def l2(x, alpha, beta):
    """x^2."""
    return x * x


@compiled
def hybrid(x, alpha, beta):
    """alpha x + beta x^2."""
    return alpha * x + beta * (x * x)


@compiled
def maximum(x, alpha, beta):
    """max(x, beta x^2)."""
    return max(x, beta * (x * x))


@compiled
def trimmed(x, alpha, beta):
    """x^2 from alpha on."""
    return x * x if x >= alpha else np.float32(0)


SHAPES = {
    Shape.L1: l1,
    Shape.L2: l2,
    Shape.HYBRID: hybrid,
    Shape.MAXIMUM: maximum,
    Shape.TRIMMED: trimmed,
}


@compiled
def words(row, first_quad, quads, stream, k0, k1, u):
    """u[:4 * quads]: the words of the stream in a row from column 4 * first_quad on; u is uint32.

    The loop does only that part of the first two rounds that depends on the column. Words are
    written in pairs, which takes the fewest vector operations.
    """
    pairs = u.view(np.uint64)
    c1, c2 = np.uint64(row) & _MASK, np.uint64(row) >> _HALF_WORD
    key0, key1 = np.uint64(k0), np.uint64(k1)
    product1 = c2 * _M1
    x0, x1 = ((product1 >> _HALF_WORD) ^ c1 ^ key0) & _MASK, product1 & _MASK
    second2 = np.uint64(stream) ^ key1
    key0, key1 = (key0 + _W0) & _MASK, (key1 + _W1) & _MASK
    product0 = x0 * _M0
    third0, third2, third3 = x1 ^ key0, (product0 >> _HALF_WORD) ^ key1, product0 & _MASK
    start0, start1 = (key0 + _W0) & _MASK, (key1 + _W1) & _MASK
    for q in range(quads):
        first3 = (np.uint64(first_quad + q) & _MASK) * _M0
        product1 = (((first3 >> _HALF_WORD) ^ second2) & _MASK) * _M1
        x0, x1, x2, x3 = (product1 >> _HALF_WORD) ^ third0, product1, first3 ^ third2, third3
        key0, key1 = start0, start1
        for _ in range(_ROUNDS - 2):
            product0, product1 = (x0 & _MASK) * _M0, (x2 & _MASK) * _M1
            x0, x1, x2, x3 = (
                (product1 >> _HALF_WORD) ^ x1 ^ key0,
                product1,
                (product0 >> _HALF_WORD) ^ x3 ^ key1,
                product0,
            )
            key0, key1 = (key0 + _W0) & _MASK, (key1 + _W1) & _MASK
        pairs[2 * q] = (x0 & _MASK) | (x1 << _HALF_WORD)
        pairs[2 * q + 1] = (x2 & _MASK) | (x3 << _HALF_WORD)


def draw_and_store(shape, law, src, count, a, s, u, rescale, kind, out, t, scratch):
    """out = src where its draw is under t = min(floor(C g(s * scale)), 2^24), else 0.

    A kept entry is divided by t / 2^24 if `rescale`; returns how many are kept. `law` is (C, alpha,
    beta, scale), u the words of the entries; t and scratch are room. `shape` is a constant of the
    call: each shape has a loop of its own, which reads and writes the memory at once.
    """
    raise RuntimeError("only compiled code calls this; its overloads are below")


@overload(draw_and_store, prefer_literal=True)
def _draw_and_store(shape, law, src, count, a, s, u, rescale, kind, out, t, scratch):
    g = SHAPES[Shape(shape.literal_value)]
    if src.dtype == types.uint16:

        def store16(shape, law, src, count, a, s, u, rescale, kind, out, t, scratch):
            C, alpha, beta, scale = law
            kept = np.int32(0)
            if not rescale:
                for k in range(count):
                    chance = min(np.floor(C * g(abs(s[k]) * scale, alpha, beta)), _UNIT)
                    keep = np.float32(u[k] >> _WORD_SHIFT) < chance
                    out[k] = src[k] if keep else np.uint16(0)
                    kept += np.int32(keep)
                return kept
            for k in range(count):
                chance = min(np.floor(C * g(abs(s[k]) * scale, alpha, beta)), _UNIT)
                keep = np.float32(u[k] >> _WORD_SHIFT) < chance
                scratch[k] = a[k] / (chance * _UNIT_STEP) if keep else np.float32(0)
                kept += np.int32(keep)
            bits = scratch.view(np.uint32)
            if kind == BFLOAT16:
                for k in range(count):
                    odd = (bits[k] >> np.uint32(16)) & np.uint32(1)
                    rounded = (bits[k] + np.uint32(0x7FFF) + odd) >> np.uint32(16)
                    out[k] = np.uint16(rounded)
                return kept
            for k in range(count):
                # Adding 1/2 leaves a float16 subnormal, rounded, in the low bits of the sum.
                t[k] = abs(scratch[k]) + np.float32(0.5)
            small = t.view(np.uint32)
            for k in range(count):
                magnitude = bits[k] & np.uint32(0x7FFFFFFF)
                odd = (magnitude >> np.uint32(13)) & np.uint32(1)
                normal = (magnitude - np.uint32(112 << 23) + np.uint32(0xFFF) + odd) >> np.uint32(
                    13
                )
                half = min(normal, np.uint32(0x7C00))
                if magnitude < np.uint32(0x38800000):
                    half = small[k] - np.uint32(0x3F000000)
                out[k] = np.uint16(half | ((bits[k] >> np.uint32(16)) & np.uint32(0x8000)))
            return kept

        return store16

    one = src.dtype.bitwidth == 64
    step = 1.0 / UNIT if one else np.float32(1.0 / UNIT)
    zero = 0.0 if one else np.float32(0.0)
    wide = np.float64 if one else np.float32

    def store_native(shape, law, src, count, a, s, u, rescale, kind, out, t, scratch):
        C, alpha, beta, scale = law
        kept = np.int32(0)
        if rescale:
            for k in range(count):
                chance = min(np.floor(C * g(abs(s[k]) * scale, alpha, beta)), _UNIT)
                keep = np.float32(u[k] >> _WORD_SHIFT) < chance
                out[k] = src[k] / (wide(chance) * step) if keep else zero
                kept += np.int32(keep)
        else:
            for k in range(count):
                chance = min(np.floor(C * g(abs(s[k]) * scale, alpha, beta)), _UNIT)
                keep = np.float32(u[k] >> _WORD_SHIFT) < chance
                out[k] = src[k] if keep else zero
                kept += np.int32(keep)
        return kept

    return store_native
