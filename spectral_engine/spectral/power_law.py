"""The power law of a spectrum's tail."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

#: Fewer values than these give no exponent: its standard error is over a third of alpha - 1.
LEAST_TAIL = 10
#: Candidates for x_min beyond which not all are tried.
_CANDIDATES = 4096
#: Entries of the table of distances that the tail fit makes at a time: what stays in the cache.
_CHUNK = 1 << 15


@dataclass(frozen=True)
class PowerLaw:
    """The fit p(x) ~ x^-alpha for x >= x_min to eigenvalues x = sigma^2 of W^T W.

    alpha: the exponent; alpha_error: its standard error (alpha - 1) / sqrt(tail)
    x_min: where the tail begins
    distance: the Kolmogorov-Smirnov distance between the tail and the fit, the smaller the better
    tail: the number of eigenvalues in the tail

    >>> import torch, spectral_engine as se
    >>> values = torch.arange(1.0, 101.0) ** -0.5
    >>> model = torch.nn.ParameterDict({"w": torch.diag(values)})
    >>> found = se.spectra(model, full=True)["w"].statistics.power_law
    >>> 1.8 < found.alpha < 2.2, found.tail >= 10
    (True, True)
    """

    alpha: float
    alpha_error: float
    x_min: float
    distance: float
    tail: int


def power_law(eigenvalues: Values) -> PowerLaw | None:
    """The power law of the tail of some eigenvalues.

    For each candidate x_min the exponent is the maximum-likelihood one,
    alpha = 1 + n / sum log(x_i / x_min) over the n values x_i >= x_min. The x_min with the smallest
    Kolmogorov-Smirnov distance is taken. Where there are more than 4,096 candidates, as only a
    large batch of blocks has, 4,096 of them are tried, evenly over their ranks, and then those
    around the best.

    Args:
        eigenvalues: descending.

    Returns:
        The fit; None where fewer than 10 eigenvalues are positive, or all are equal.

    Source: Clauset, Shalizi, Newman, "Power-law distributions in empirical data", SIAM Review 51
    (2009), arXiv 0706.1062, equations 3.1, 3.2 and 3.9. That x are the eigenvalues of W^T W and
    not the singular values is WeightWatcher's convention (Martin, Peng, Mahoney, Nature
    Communications 12 (2021), arXiv 2002.06716), which its published exponents follow.
    """
    x = eigenvalues[eigenvalues > 0.0]
    if len(x) < LEAST_TAIL:
        return None
    logs = np.log(x)
    n = np.arange(1.0, len(x) + 1)
    excess = np.cumsum(logs) - n * logs
    # One candidate for each distinct value, with all that equal it in the tail.
    last = np.append(logs[1:] < logs[:-1], True)
    candidates = np.flatnonzero(last & (n >= LEAST_TAIL) & (excess > 1e-9 * n))
    if len(candidates) == 0:
        return None
    slopes = n / np.maximum(excess, 1e-300)
    step = -(-len(candidates) // _CANDIDATES)
    best, distance = _nearest(logs, candidates[::step], slopes)
    if step > 1:
        place = step * best
        candidates = candidates[max(0, place - step) : place + step]
        best, distance = _nearest(logs, candidates, slopes)
    tail = int(n[candidates[best]])
    slope = float(slopes[candidates[best]])
    return PowerLaw(
        alpha=1.0 + slope,
        alpha_error=slope / math.sqrt(tail),
        x_min=float(x[tail - 1]),
        distance=distance,
        tail=tail,
    )


def _nearest(logs: Values, candidates: NDArray[np.intp], slopes: Values) -> tuple[int, float]:
    """Which of the candidates has the tail nearest to its fit, and its distance."""
    rows = max(1, _CHUNK // len(logs))
    distances = np.concatenate(
        [
            _distances(logs, some, slopes[some])
            for some in np.split(candidates, range(rows, len(candidates), rows))
        ]
    )
    best = int(np.argmin(distances))
    return best, float(distances[best])


def _distances(logs: Values, tails: NDArray[np.intp], slopes: Values) -> Values:
    """max |S(x) - P(x)| over the tail logs[: k + 1] of each k in `tails`.

    The i-th largest of k + 1 values is where the share S of values above steps from i / (k + 1) to
    (i + 1) / (k + 1); of the two sides, the worse is off by the distance from the middle of the
    step and half the step.
    """
    index = np.arange(int(tails.max()) + 1)
    step = 1.0 / (tails + 1)
    # log P, cut at 0 where x is below x_min and P means nothing.
    gap = np.multiply.outer(-slopes, logs[: len(index)])
    gap += (slopes * logs[tails])[:, None]
    np.minimum(gap, 0.0, out=gap)
    np.exp(gap, out=gap)
    gap -= np.multiply.outer(step, index + 0.5)
    np.abs(gap, out=gap)
    gap[index[None, :] > tails[:, None]] = 0.0
    distances: Values = gap.max(axis=1) + 0.5 * step
    return distances
