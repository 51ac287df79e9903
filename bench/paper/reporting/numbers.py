"""Intervals among the tidy rows of a task, and lookups in their records."""

import math
from collections.abc import Iterable
from typing import Any

from bench.paper.reporting.statistics import Interval
from bench.tidy import Row

Records = list[dict[str, Any]]


def interval_rows(
    variant: str, setting: str, sparsity: float | None, metric: str, found: Interval
) -> list[Row]:
    """An estimate with its interval: its half width where it lies in the middle, else both ends."""
    estimate, low, high, _ = found
    ends = {"": estimate}
    if found.symmetric:
        ends[" ±"] = high - estimate
    elif not math.isnan(low):
        ends |= {", low": low, ", high": high}
    return [
        Row(variant, None, setting, sparsity, metric + end, value) for end, value in ends.items()
    ]


def interval_of(record: dict[str, Any], metric: str) -> Interval:
    """The same back; how many values it is of is not kept, and is 0."""
    estimate = record.get(metric, math.nan)
    half = record.get(f"{metric} ±", math.nan)
    low = record.get(f"{metric}, low", estimate - half)
    high = record.get(f"{metric}, high", estimate + half)
    return Interval(estimate, low, high, 0)


def values(records: Iterable[dict[str, Any]], metric: str, **where: Any) -> list[float]:
    """A metric of the records that have it and agree with `where`."""
    return [
        record[metric]
        for record in records
        if metric in record and all(record[key] == value for key, value in where.items())
    ]


def distinct(records: Iterable[dict[str, Any]], key: str, metric: str) -> list[Any]:
    """The values of one column, in order, of the records that have a metric."""
    return list(dict.fromkeys(record[key] for record in records if metric in record))
