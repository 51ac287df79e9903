"""Means with intervals, and rank correlation, as in every table here.

Checked against scipy in the tests; the formulas are short, and scipy is no dependency.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Of every interval.
LEVEL = 0.95
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Interval(NamedTuple):
    """An estimate, and the ends of its interval; NaN where there are too few values for one."""

    estimate: float
    low: float
    high: float
    size: int

    @property
    def symmetric(self) -> bool:
        """Whether the estimate lies in the middle of an interval."""
        off = abs((self.high - self.estimate) - (self.estimate - self.low))
        return off < 1e-9 * max(1.0, abs(self.estimate))  # False for NaN

    def show(self, scale: float = 1.0, digits: int = 1) -> str:
        """ "92.3 ± 0.4", or "0.81 [0.70, 0.88]" where the interval is lopsided."""
        middle, low, high = (scale * value for value in self[:3])
        if math.isnan(middle):
            return "-"
        if math.isnan(low):
            return f"{middle:.{digits}f}"
        if self.symmetric:
            return f"{middle:.{digits}f} ± {high - middle:.{digits}f}"
        return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t, for probabilities above 1/2.

    With t = sqrt(f) tan(x), P(0 < T < t) is the integral of cos^(f - 1) from 0 to x over that to
    pi / 2, twice; solved by bisection.
    """
    if not 0.5 < probability < 1.0:
        raise ValueError(f"probability: expected a number in (0.5, 1); got {probability}")

    def area(angle: float) -> float:
        return float(angle / 2 * (_WEIGHTS @ np.cos(angle / 2 * (_NODES + 1)) ** (freedom - 1)))

    low, high, wanted = 0.0, math.pi / 2, (2 * probability - 1) * area(math.pi / 2)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if area(middle) < wanted else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean, with Student's interval; without one for a single value."""
    found = np.asarray([value for value in values if value is not None], dtype=np.float64)
    count = len(found)
    if count == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(found.mean())
    if count == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = t_quantile(0.5 + LEVEL / 2, count - 1) * float(found.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks from 1, ties at their mean."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: NDArray[np.float64] = (last - (counts - 1) / 2.0)[place]
    return means


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0.0 else math.nan


def spearman_interval(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Spearman's correlation with Fisher's interval; none under four pairs.

    The variance of atanh(r) is 1.06 / (n - 3) (Fieller, Hartley, Pearson, Biometrika 1957).
    """
    found, count = spearman(x, y), len(x)
    if count < 4 or math.isnan(found):
        return Interval(found, math.nan, math.nan, count)
    bounded = min(max(found, -1.0 + 1e-12), 1.0 - 1e-12)
    half = 1.959963984540054 * math.sqrt(1.06 / (count - 3))
    middle = math.atanh(bounded)
    return Interval(found, math.tanh(middle - half), math.tanh(middle + half), count)
