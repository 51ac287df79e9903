"""The NumPy oracle of every operation: short, plainly right, and the reference for all kernels.

A matrix A is (m, n) of float16, float32, float64, or bfloat16 carried as ml_dtypes' or as float32
values that are bfloat16 numbers (`round_bfloat16` makes them). Scores are (m, n) float32.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.reference import budget as bg
from spectral_kernels.reference import stream as rng
from spectral_kernels.reference.laws import Base, Shape

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Matrix = NDArray[np.floating]


@dataclass(frozen=True)
class Scale:
    """A solved law for one group: t = min(floor(C g(x)), 2^24), x = s * scale."""

    C: float
    alpha: float = 0.0
    beta: float = 0.0
    scale: float = 1.0


def round_bfloat16(values: Matrix) -> Float32:
    """float32 values rounded to the nearest bfloat16, ties to even, still as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def low_rank(left: Float32, right: Float32) -> Float32:
    """B = left (m, k) @ right (k, n), summed in order of k, every product and sum rounded."""
    B = np.zeros((len(left), right.shape[1]), np.float32)
    for q in range(len(right)):
        B = B + left[:, q : q + 1] * right[q]
    return B


def score(
    A: Matrix, base: Base = Base.MAGNITUDE, B: Float32 | None = None,
    weights: tuple[float, float] = (0.0, 0.0),
    row: Float32 | None = None, column: Float32 | None = None,
) -> Float32:  # fmt: skip
    """s = ((base * column_j) * row_i); `weights` are (b, a) of MIXTURE, B the (m, n) low rank."""
    with np.errstate(over="ignore"):
        a = np.abs(A).astype(np.float32)
        if base == Base.MAGNITUDE or B is None:
            s = a
        elif base == Base.PRINCIPAL:
            s = np.abs(B)
        elif base == Base.ALIGNED:
            s = np.maximum(A.astype(np.float32) * B, np.float32(0))
        else:
            scaled_b, scaled_a = B * np.float32(weights[0]), a * np.float32(weights[1])
            s = np.sqrt(scaled_b * scaled_b + scaled_a * scaled_a)
        if column is not None:
            s = s * column[None, :]
        if row is not None:
            s = s * row[:, None]
    # The absolute value clears the sign of a NaN, which would put it outside every histogram.
    return np.where(a == 0, np.float32(0), np.abs(s))


def histogram(s: Float32) -> tuple[Int64, Int64]:
    """Per bin of leading 13 bits the count and the sum of the low 18; zeros left out; (8192,)."""
    bits = np.ascontiguousarray(s).view(np.uint32).ravel()
    bits = bits[bits > 0]
    count = np.zeros(bg.BINS, np.int64)
    low = np.zeros(bg.BINS, np.int64)
    np.add.at(count, bits >> bg.LOW_BITS, 1)
    np.add.at(low, bits >> bg.LOW_BITS, (bits & bg.LOW_MASK).astype(np.int64))
    return count, low


def refine(s: Float32, cut: int) -> tuple[Int64, Int64]:
    """The distinct low bits in bin `cut`, ascending, and how many entries have each."""
    bits = np.ascontiguousarray(s).view(np.uint32).ravel()
    inside = bits[((bits >> bg.LOW_BITS) == cut) & (bits > 0)] & bg.LOW_MASK
    low, multiplicity = np.unique(inside, return_counts=True)
    return low.astype(np.int64), multiplicity.astype(np.int64)


def solve(s: Float32, shape: Shape, parameter: float, budget: int) -> Scale:
    """The scale of a law under which the group of scores s keeps `budget` entries on average."""
    count, low = (integers.tolist() for integers in histogram(s))
    m, n = s.shape
    alpha, beta, first, last, top = bg.prepare(count, low, shape, parameter, m, n, budget)
    if first > last:
        return Scale(0.0)
    problem = (top, int(shape), alpha, beta, budget)
    c, cut, above, below = bg.solve_bins(count, low, first, last, *problem)
    if cut >= 0:
        values, multiplicity = (integers.tolist() for integers in refine(s, cut))
        c = bg.solve_values(values, multiplicity, cut, above, below, *problem)
    C, alpha, beta, scale = bg.kernel_parameters(c, top, int(shape), alpha, beta)
    return Scale(float(np.float32(C)), alpha, beta, scale)


def threshold_mask(s: Float32, budget: int) -> NDArray[np.bool_]:
    """Exactly `budget` entries: the largest scores, the earlier index first among equals."""
    order = np.argsort(-s.ravel(), kind="stable")
    mask = np.zeros(s.size, bool)
    mask[order[:budget]] = True
    return mask.reshape(s.shape)


def probabilities(s: Float32, shape: Shape, law: Scale) -> Float32:
    """t = min(floor(C g(x)), 2^24) as float32, every product rounded to float32."""
    alpha, beta = np.float32(law.alpha), np.float32(law.beta)
    with np.errstate(over="ignore"):
        x = s * np.float32(law.scale)
        if shape == Shape.L1:
            g = x
        elif shape == Shape.L2:
            g = x * x
        elif shape == Shape.HYBRID:
            g = alpha * x + beta * (x * x)
        elif shape == Shape.MAXIMUM:
            g = np.maximum(x, beta * (x * x))
        else:
            g = np.where(x >= alpha, x * x, np.float32(0))
        t: Float32 = np.minimum(np.floor(np.float32(law.C) * g), np.float32(rng.UNIT))
    return t


def sample(
    A: Matrix, t: Float32, *, rescale: bool, seed: int, stream: int,
    row_offset: int = 0, column_offset: int = 0,
) -> Matrix:  # fmt: skip
    """A where u < t, divided by t / 2^24 if `rescale`, else 0; same dtype as A.

    The division is one IEEE division in float32 (float64 for float64), rounded to A's dtype.
    """
    u = rng.draws(A.shape, seed, stream, row_offset=row_offset, column_offset=column_offset)
    keep = u < t.astype(np.uint32)
    if not rescale:
        return np.where(keep, A, np.zeros((), A.dtype))
    wide = np.dtype(np.float64 if A.dtype == np.float64 else np.float32)
    p = t.astype(wide) / wide.type(rng.UNIT)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rescaled: Matrix = np.where(keep, A.astype(wide) / p, wide.type(0)).astype(A.dtype)
    return rescaled


def keep_scores(s: Float32, A: Matrix, threshold: np.float32, tie_stop: int) -> Matrix:
    """A where s > threshold, or s == threshold at a flat index under `tie_stop`."""
    index = np.arange(s.size).reshape(s.shape)
    keep = (s > threshold) | ((s == threshold) & (index < tie_stop))
    return np.where(keep, A, np.zeros((), A.dtype))
