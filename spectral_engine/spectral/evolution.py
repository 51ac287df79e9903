"""How one weight's spectrum evolved over its records: when it was at rest, when it collapsed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_engine.spectral.power_law import Values

#: A largest singular value at most this share of the largest so far has vanished.
VANISHED = 1e-6


@dataclass(frozen=True)
class Evolution:
    """What was recorded of one weight, at each of T steps.

    singular_values: the leading ones, (T, k)
    stable_rank: (T,)
    stabilised, collapsed: the steps at which it had, or None
    """

    singular_values: Values
    stable_rank: Values
    stabilised: int | None
    collapsed: int | None


def stabilised_from(values: Values, tolerance: float, window: int) -> int | None:
    """The first record (of values (T, k)) from which on all are at rest; None if there is none."""
    change = np.linalg.norm(values[window:] - values[:-window], axis=1)
    still = change <= tolerance * np.linalg.norm(values[window:], axis=1)
    early = np.zeros(min(window, len(values)), dtype=bool)  # with nothing to be compared with
    return _for_good(np.concatenate([early, still]))


def collapsed_from(largest: Values, rank: Values, share: float) -> int | None:
    """The first record from which on all are of a collapsed spectrum; None if there is none.

    largest: the largest singular values, (T,); rank: the ranks, (T,)
    """
    gone = ~np.isfinite(largest) | (largest <= VANISHED * np.fmax.accumulate(largest))
    return _for_good(gone | (rank < share * np.fmax.accumulate(rank)))


def _for_good(holds: NDArray[np.bool_]) -> int | None:
    """The first record at which `holds` is true and stays true, or None."""
    fails = np.flatnonzero(~holds)
    start = int(fails[-1]) + 1 if len(fails) else 0
    return start if start < len(holds) else None
