"""What a matrix's entries are worth by magnitude: the curve that budgets across layers read."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral_kernels.call.sparsify import histogram
from spectral_kernels.reference.budget import FINITE_BINS, LOW_BITS, bin_moments, value_of

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
#: The exponent field of 1, by which `budget` scales nothing.
_TOP = 127


class MagnitudeCurve(NamedTuple):
    """The entries of a matrix in bins of magnitude, from large to small; the last holds the zeros.

    Every array has one value for each bin that is not empty, and one for the zeros. A bin is 3 %
    wide.

    counts: entries of the bin, int64
    squares: the sum of their squares, float64, to a relative 2e-4
    least, most: bounds on that sum
    largest: a bound on the square of a single entry of the bin
    """

    counts: Int64
    squares: Float64
    least: Float64
    most: Float64
    largest: Float64


def magnitude_curve(weight: Any, argument: str = "weight") -> MagnitudeCurve:
    """How many entries a matrix has of each magnitude, and what their squares sum to.

    Args:
        weight: (m, n) or more dimensions; NumPy, torch or CuPy, of any dtype that `sparsify` takes.
        argument: what an error calls the weight.

    Returns:
        The curve, on the host.

    Raises:
        TypeError: not an array that can be sparsified.
        ValueError: fewer than two dimensions, empty, or entries that are not finite as float32.

    >>> import numpy as np
    >>> from spectral_kernels import magnitude_curve
    >>> curve = magnitude_curve(np.array([[2.0, 0.0], [-1.0, 1.0]], np.float32))
    >>> curve.counts.tolist()
    [1, 2, 1]
    >>> curve.least.tolist()
    [4.0, 2.0, 0.0]
    """
    count, low = histogram(weight)
    if count[FINITE_BINS:].any():
        raise ValueError(f"{argument}: expected finite entries that fit float32; got others")
    bins = np.flatnonzero(count)[::-1]
    zeros = math.prod(weight.shape) - int(count.sum())
    columns = []
    for b in map(int, bins):
        n = int(count[b])
        bottom, top = value_of(b << LOW_BITS, _TOP), value_of(b + 1 << LOW_BITS, _TOP)
        total, squares = bin_moments(n, int(low[b]), b, _TOP)
        mean = total / n
        # Bhatia-Davis: no variance is over (mean - bottom) (top - mean).
        most = n * (mean * mean + (mean - bottom) * (top - mean))
        columns.append((squares, n * mean * mean, most, top * top))
    columns.append((0.0, 0.0, 0.0, 0.0))
    return MagnitudeCurve(np.append(count[bins], zeros), *np.array(columns).T)
