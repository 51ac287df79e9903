"""The product in NumPy, with the order of its sums: what the CPU's kernels give bit for bit.

Products and sums are one rounding each time (a fused multiply-add), float32, float64 where the
values are; shorter formats become float32 first, which is exact. There are two orders:

by column   up to three right-hand sides. A row has 32 sums, all 0 at first. Column after column,
            the product of a stored value and x is added to sum (column mod 32). Then the upper
            half of the sums is added to the lower, 16, 8, 4, 2 and 1.
by stored   from four right-hand sides on. A row has four sums. In each tile of 1,024 columns,
            stored value j of the tile, from 0 on, is added to sum (j mod 4). Then the last two
            sums are added to the first two, and these together.

At the end 0 is added, which turns -0 into 0. From 17 right-hand sides on, a matrix with more than
half of its entries stored is multiplied by the BLAS, whose order is its own.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

LANES = 32
#: "By stored" from so many right-hand sides on.
SIDES_BY_STORED = 4
SUMS, TILE = 4, 1024

Floats = NDArray[np.floating]


def pack(A: Floats) -> tuple[Floats, NDArray[np.uint8], NDArray[np.int32]]:
    """Values (nnz,), bitmask uint8 (m, ceil(n / 8)) and row offsets int32 (m,) of A (m, n)."""
    stored = A.view(f"u{A.itemsize}") != 0
    counts = stored.sum(axis=1, dtype=np.int32)
    offsets = counts.cumsum(dtype=np.int32) - counts
    return A[stored], np.packbits(stored, axis=1, bitorder="little"), offsets


def unpack(values: Floats, bits: NDArray[np.uint8], shape: tuple[int, int]) -> Floats:
    """The matrix that `pack` was given."""
    A = np.zeros(shape, values.dtype)
    A[np.unpackbits(bits, axis=1, count=shape[1], bitorder="little") != 0] = values
    return A


def product(A: Floats, X: Floats) -> Floats:
    """X (k, n) A^T, (k, m): float64 if A is, else float32. Slow: small matrices only."""
    wide = np.float64 if A.dtype == np.float64 else np.float32
    stored = A.view(f"u{A.itemsize}") != 0
    if X.shape[0] >= SIDES_BY_STORED:
        tiles = [stored[:, j : j + TILE].cumsum(axis=1) for j in range(0, A.shape[1], TILE)]
        sums, home = SUMS, (np.concatenate(tiles, axis=1) - 1) % SUMS
    else:
        sums, home = LANES, np.broadcast_to(np.arange(A.shape[1]) % LANES, A.shape)
    (k, n), m = X.shape, A.shape[0]
    A, X = A.astype(wide), X.astype(wide)
    lanes, rows = np.zeros((k, m, sums), wide), np.arange(m)
    with np.errstate(all="ignore"):
        for j in range(n):
            at = home[:, j]
            before = lanes[:, rows, at]
            after = fused(A[None, :, j], X[:, j, None], before)
            lanes[:, rows, at] = np.where(stored[None, :, j], after, before)
        half = sums // 2
        while half:
            lanes = lanes[:, :, :half] + lanes[:, :, half:]
            half //= 2
        found: Floats = lanes[:, :, 0] + wide(0)
    return found


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a b + c rounded once, of float32 or float64 arrays."""
    if np.result_type(a, b, c) == np.float64:
        exact = np.vectorize(_fused_double, otypes=[np.float64])
        found: Floats = exact(a, b, c)
        return found
    product, c = a.astype(np.float64) * b, c.astype(np.float64)  # the product is exact
    total = product + c
    # What rounding to float64 lost (Knuth's two-sum) moves the last bit to odd, after which
    # rounding to float32 gives what one rounding of the exact sum gives.
    part = total - product
    lost = (product - (total - part)) + (c - part)
    bits = np.ascontiguousarray(total).view(np.int64)
    inexact = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
    outwards = (lost > 0) == (total > 0)
    bits = np.where(inexact, np.where(outwards, bits + 1, bits - 1), bits)
    with np.errstate(over="ignore"):
        return bits.view(np.float64).astype(np.float32)


def _fused_double(a: float, b: float, c: float) -> float:
    if not np.isfinite([a, b, c]).all():
        return a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return a * b + c  # for the sign of zero
    try:
        return float(exact)
    except OverflowError:
        return float(np.copysign(np.inf, float(exact > 0) - 0.5))
