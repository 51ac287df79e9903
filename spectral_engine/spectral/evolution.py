"""How one weight's spectrum evolved over its records: when it was at rest, when it collapsed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectral_engine.pages.sheet import Column, Listed, Row, Sheet, counted, numeral
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


_COLUMNS = [
    Column("sigma 1 first", "the largest singular value at the first record"),
    Column("sigma 1 last", "the same at the last record"),
    Column("stable rank first", "||W||_F^2 / ||W||_2^2"),
    Column("stable rank last"),
    Column("stabilised", "the step at which the spectrum had come to rest"),
    Column("collapsed", "the step at which it had collapsed"),
]


def evolution_sheet(
    steps: NDArray[np.int64], weights: Mapping[str, Evolution], every: int
) -> Sheet:
    """What was recorded of each weight, at first and at last.

    Args:
        steps: at which there are records, (T,).
        weights: by name.
        every: steps between records.
    """
    collapsed = [name for name, weight in weights.items() if weight.collapsed is not None]
    facts = [("records", f"{len(steps):,}"), ("every", f"{every:,} steps")]
    if len(steps):
        facts.append(("steps", f"{steps[0]:,} to {steps[-1]:,}"))
    return Sheet(
        title=f"{counted(len(weights), 'weight')}, {counted(len(steps), 'record')}",
        facts=facts,
        warnings=[Listed("spectrum collapsed", "", collapsed)] if collapsed else [],
        columns=_COLUMNS,
        rows=[_row(name, weight) for name, weight in weights.items()],
        curves=("first record", "last record"),
    )


def _row(name: str, weight: Evolution) -> Row:
    values, ranks = weight.singular_values, weight.stable_rank
    ends = (values[0, 0], values[-1, 0], ranks[0], ranks[-1]) if len(values) else (None,) * 4
    cells = [
        numeral(ends[0], ".4g"), numeral(ends[1], ".4g"), numeral(ends[2], ".1f"),
        numeral(ends[3], ".1f"), numeral(weight.stabilised, "d"), numeral(weight.collapsed, "d"),
    ]  # fmt: skip
    first, last = (values[0].tolist(), values[-1].tolist()) if len(values) else ([], [])
    return Row(name, cells, first, last)


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
