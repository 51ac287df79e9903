"""Row statistics and the row vectors that laws make of them.

Sums run over integers, so that the order of summation does not show. Each entry is cut to a fixed
point that is chosen by the largest entry of its row; it has as many bits as the row's length leaves
in an int64.
"""

import math

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.reference.budget import compilable

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
#: Where the bisection of "bernstein" starts, its steps, and the value at which a rho is cut.
LEAST_ZETA = 1e-12
BISECTIONS = 200
RHO_CAP = 2.0
#: RHO_CAP < 2^RHO_BITS.
RHO_BITS = 2


@compilable
def fixed_point_shift(n: int, exponent: int) -> int:
    """Entries below 2^exponent, n of them, times 2^shift: their integer sum fits in an int64."""
    bits = 0
    while n >> bits > 0:
        bits += 1
    return 62 - bits - exponent


def row_l1(magnitude: Float32) -> Float64:
    """||A_i||_1 of each row of |A| (m, n), rounded once to float64: the oracle of the kernels."""
    sums = np.zeros(len(magnitude), np.float64)
    for i, row in enumerate(magnitude.astype(np.float64)):
        largest = float(row.max(initial=0.0))
        if largest > 0.0:
            shift = fixed_point_shift(row.size, math.frexp(largest)[1])
            total = int(np.ldexp(row, shift).astype(np.int64).sum())
            sums[i] = math.ldexp(float(total), -shift)
    return sums


def row_l1_weights(l1: Float64) -> Float32:
    """Row vector of "row-l1": p_ij ~ |A_ij| ||A_i||_1, scaled so that the largest weight is 1."""
    largest = float(l1.max(initial=0.0))
    weights: Float32 = (l1 / largest if largest > 0.0 else l1).astype(np.float32)
    return weights


def bernstein_terms(m: int, n: int, budget: int, delta: float = 0.1) -> tuple[float, float]:
    """(alpha, beta) of `bernstein_row_weights`."""
    log_term = math.log((m + n) / delta)
    return math.sqrt(log_term / budget), log_term / (3.0 * budget)


def _fixed_point_sum(values: Float64, shift: int) -> int:
    return int(np.ldexp(values, shift).astype(np.int64).sum())


def bernstein_row_weights(l1: Float64, n: int, budget: int, delta: float = 0.1) -> Float32:
    """Row vector rho_i / ||A_i||_1 of "bernstein", up to a common factor.

    Achlioptas, Karnin, Liberty, "Near-optimal entrywise sampling for data matrices", NIPS 2013.
    With z_i = ||A_i||_1 / ||A||_1, s = `budget`, L = ln((m + n) / delta), alpha = sqrt(L / s) and
    beta = L / (3 s),

        rho_i(zeta) = (alpha z_i / (2 zeta) + sqrt((alpha z_i / (2 zeta))^2 + beta z_i / zeta))^2,

    and zeta solves sum rho_i = 1; the sum falls as zeta grows, so bisection finds it. delta is the
    probability with which the paper's error bound may fail.
    """
    largest = float(l1.max(initial=0.0))
    if largest == 0.0:
        return np.zeros(len(l1), np.float32)
    shift = fixed_point_shift(len(l1), math.frexp(largest)[1])
    z = l1 / math.ldexp(float(_fixed_point_sum(l1, shift)), -shift)
    alpha, beta = bernstein_terms(len(l1), n, budget, delta)
    shift = fixed_point_shift(len(l1), RHO_BITS)

    def rho(zeta: float) -> NDArray[np.float64]:
        half = alpha * z / (2.0 * zeta)
        return (half + np.sqrt(half * half + beta * z / zeta)) ** 2

    def too_much(zeta: float) -> bool:
        capped = np.minimum(rho(zeta), RHO_CAP)
        return _fixed_point_sum(capped, shift) > 1 << shift

    lower, upper = LEAST_ZETA, 1.0
    while too_much(upper):
        upper *= 2.0
    for _ in range(BISECTIONS):
        middle = math.sqrt(lower * upper)
        if too_much(middle):
            lower = middle
        else:
            upper = middle
    weights = np.divide(rho(upper), z, out=np.zeros_like(z), where=z > 0)
    scaled: Float32 = (weights / weights.max()).astype(np.float32)
    return scaled
