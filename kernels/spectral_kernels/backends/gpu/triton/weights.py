"""The row vector of "bernstein" on the device: `rows.bernstein_row_weights`, bit for bit."""

# mypy: ignore-errors
# Compiled code has no types to check: Triton gives its own.

import triton
import triton.language as tl

from spectral_kernels.backends.gpu.triton.histograms import power_of_two
from spectral_kernels.reference import rows

_LEAST_ZETA = tl.constexpr(rows.LEAST_ZETA)
_MOST_ZETA = tl.constexpr(2.0**200)
_BISECTIONS = tl.constexpr(rows.BISECTIONS)
_RHO_CAP, _RHO_BITS = tl.constexpr(rows.RHO_CAP), tl.constexpr(rows.RHO_BITS)


@triton.jit
def some_rows(l1, i, m, ROWS: tl.constexpr):
    """l1 of ROWS rows from i on, 0 past the last."""
    at = i + tl.arange(0, ROWS)
    return tl.load(l1 + at, mask=at < m, other=0.0)


@triton.jit
def rho(z, zeta, alpha, beta):
    """Share of the budget of a row."""
    half = alpha * z / (2.0 * zeta)
    root = half + tl.sqrt(half * half + beta * z / zeta)
    return root * root


@triton.jit
def too_much(l1, total, zeta, alpha, beta, shift, m, ROWS: tl.constexpr):
    """Whether the rows' shares sum to more than 1, in integers."""
    unit = power_of_two(shift)
    found, i = m * 0, m * 0
    while i < m:
        share = tl.minimum(rho(some_rows(l1, i, m, ROWS) / total, zeta, alpha, beta), _RHO_CAP)
        found += tl.sum((share * unit).to(tl.int64))
        i += ROWS
    return found > (m * 0 + 1) << shift


@triton.jit
def bernstein_weights(
    l1, weights, alpha: tl.int64, beta: tl.int64, bits: tl.int64, m: tl.int64, ROWS: tl.constexpr
):
    """weights float32 (m,) from l1 float64 (m,); one program.

    alpha and beta are float64 bits; `bits` is `rows.fixed_point_shift(m, 0)`. Reads l1 some
    200 times, once for each step of bisection, from the cache.
    """
    alpha = alpha.to(tl.int64).to(tl.float64, bitcast=True)
    beta, m = beta.to(tl.int64).to(tl.float64, bitcast=True), m.to(tl.int64)
    i, largest = m * 0, alpha * 0
    while i < m:
        largest = tl.maximum(largest, tl.max(some_rows(l1, i, m, ROWS)))
        i += ROWS
    if largest > 0:
        # 1022 more than frexp's exponent; sums of float32 are no subnormals here.
        field = (largest.to(tl.uint64, bitcast=True) >> 52).to(tl.int64) & 0x7FF
        shift = bits - (field - 1022)
        unit, total, i = power_of_two(shift), m * 0, m * 0
        while i < m:
            total += tl.sum((some_rows(l1, i, m, ROWS) * unit).to(tl.int64))
            i += ROWS
        whole = total.to(tl.float64) * power_of_two(-shift)
        shift = bits - _RHO_BITS
        lower, upper = alpha * 0 + _LEAST_ZETA, alpha * 0 + 1.0
        # The bound ends the loop for NaN and infinity too; they are refused later.
        while too_much(l1, whole, upper, alpha, beta, shift, m, ROWS) & (upper < _MOST_ZETA):
            upper = upper * 2.0
        for _ in range(_BISECTIONS):
            middle = tl.sqrt(lower * upper)
            more = too_much(l1, whole, middle, alpha, beta, shift, m, ROWS)
            lower, upper = tl.where(more, middle, lower), tl.where(more, upper, middle)
        largest, i = alpha * 0, m * 0
        while i < m:
            z = some_rows(l1, i, m, ROWS) / whole
            ratio = rho(z, upper, alpha, beta) / tl.where(z > 0, z, 1.0)
            largest = tl.maximum(largest, tl.max(tl.where(z > 0, ratio, 0.0)))
            i += ROWS
        i = m * 0
        while i < m:
            z = some_rows(l1, i, m, ROWS) / whole
            ratio = rho(z, upper, alpha, beta) / tl.where(z > 0, z, 1.0)
            at = i + tl.arange(0, ROWS)
            weight = tl.where(z > 0, ratio, 0.0) / largest
            tl.store(weights + at, weight.to(tl.float32), mask=at < m)
            i += ROWS
    else:
        i = m * 0
        while i < m:
            at = i + tl.arange(0, ROWS)
            tl.store(weights + at, tl.zeros((ROWS,), tl.float32), mask=at < m)
            i += ROWS
