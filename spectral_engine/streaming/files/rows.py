"""The rows of a run's report, kept from run to run, in the order in which `prune` gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from spectral_engine.pruning.report import LayerReport


@dataclass(frozen=True)
class Row:
    """A layer's row, and the layer's place in the plan."""

    place: int
    report: LayerReport


def plain_rows(rows: Sequence[Row]) -> list[Any]:
    """The rows as values that JSON holds."""
    return [[row.place, asdict(row.report)] for row in rows]


def rows_of(values: Sequence[Any]) -> list[Row]:
    """The rows again."""
    return [Row(place, _report(report)) for place, report in values]


def in_order(rows: Sequence[Row]) -> list[LayerReport]:
    """What a report holds."""
    return [row.report for row in sorted(rows, key=lambda row: row.place)]


def _report(values: Mapping[str, Any]) -> LayerReport:
    found: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in values.items()
    }
    return LayerReport(**found)
