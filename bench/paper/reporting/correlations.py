"""What the rows of one-shot pruning say: does an error tell the accuracy?

A row is a pruned network: its `ERRORS`, `test`, and the `seed`, `setting` and `requested` sparsity
that made it. -1 is an error that tells all.
"""

from typing import Any

import numpy as np

from bench.paper.reporting.measures import ERRORS
from bench.paper.reporting.numbers import Records, interval_of, interval_rows
from bench.paper.reporting.statistics import mean_interval, spearman, spearman_interval
from bench.tables import Table
from bench.tidy import Row

#: Metrics of the CSV, by the names in what `across` and its like give.
METRICS = {key: f"rho {key}" for key in ERRORS} | {"better": "rho spectral over frobenius"}


def unbiased(row: dict[str, Any]) -> bool:
    """Whether entries were divided by their probability."""
    return bool(row["rescaled"])


def across(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At each sparsity: correlation over the methods in each network, then over the networks.

    better: by how much |rho| of the spectral error exceeds that of the Frobenius error
    """
    found = []
    for sparsity in sorted({row["requested"] for row in rows}):
        here = [row for row in rows if row["requested"] == sparsity]
        each: dict[str, list[float]] = {key: [] for key in ERRORS}
        for seed in sorted({row["seed"] for row in here}):
            mine = [row for row in here if row["seed"] == seed]
            for key in ERRORS:
                each[key].append(spearman([r[key] for r in mine], [r["test"] for r in mine]))
        better = [abs(s) - abs(f) for s, f in zip(each["spectral"], each["frobenius"], strict=True)]
        found.append(
            {
                "sparsity": sparsity,
                "best": max(row["test"] for row in here),
                **{key: mean_interval(known(each[key])) for key in ERRORS},
                "better": mean_interval(known(better)),
            }
        )
    return found


def over_sparsities(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method: correlation over sparsities and networks, with Fisher's interval."""
    found = []
    for label in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == label]
        test = [row["test"] for row in mine]
        found.append(
            {"setting": label}
            | {key: spearman_interval([row[key] for row in mine], test) for key in ERRORS}
        )
    return found


def over_draws(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method and sparsity: correlation over draws in each network, then over networks."""
    found = []
    for label in dict.fromkeys(row["setting"] for row in rows):
        for sparsity in sorted({row["requested"] for row in rows}):
            each: dict[str, list[float]] = {key: [] for key in ERRORS}
            for seed in sorted({row["seed"] for row in rows}):
                mine = [
                    row for row in rows
                    if (row["setting"], row["requested"], row["seed"]) == (label, sparsity, seed)
                ]  # fmt: skip
                for key in ERRORS:
                    each[key].append(spearman([r[key] for r in mine], [r["test"] for r in mine]))
            found.append(
                {"setting": label, "sparsity": sparsity}
                | {key: mean_interval(known(each[key])) for key in ERRORS}
            )
    return found


def numbers(told: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Rows of the CSV: a variant is a title of `told`."""
    return [
        one
        for title, places in told.items()
        for place in places
        for key, metric in METRICS.items()
        if key in place
        for one in interval_rows(
            title, place.get("setting", ""), place.get("sparsity"), metric, place[key]
        )
    ]


def read(found: Records) -> dict[str, list[dict[str, Any]]]:
    """What `numbers` was given, from the records of its rows."""
    told: dict[str, list[dict[str, Any]]] = {}
    for record in found:
        intervals = {
            key: interval_of(record, metric) for key, metric in METRICS.items() if metric in record
        }
        if intervals:
            place = {name: record[name] for name in ("setting", "sparsity") if record[name]}
            told.setdefault(record["variant"], []).append(place | intervals)
    return told


def known(values: list[float]) -> list[float]:
    """Without NaN: a correlation that is not defined, as where all accuracies are equal."""
    return [value for value in values if not np.isnan(value)]


def correlated(correlations: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """The rank correlations of each error with accuracy, -1 where the error tells all."""
    tables = []
    for title, rows in correlations.items():
        across_methods = title.startswith("across")
        heading = [name for name in ("setting", "sparsity") if name in rows[0]]
        shown = Table(
            f"Spearman's correlation of error with accuracy, {title}"
            + (" methods at one sparsity" if title == "across" else ""),
            (*heading, *ERRORS, *(("spectral over frobenius",) if across_methods else ())),
        )
        for row in rows:
            shown.rows.append(
                (
                    *(f"{row[name]:.0%}" if name == "sparsity" else row[name] for name in heading),
                    *(row[key].show(digits=2) for key in ERRORS),
                    *((row["better"].show(digits=2),) if across_methods else ()),
                )
            )
        tables.append(shown)
    return tables
