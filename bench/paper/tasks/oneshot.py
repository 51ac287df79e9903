"""Task 2, one-shot pruning: does keeping the spectrum keep the accuracy, and which method keeps it?

Every method at every sparsity, without retraining; then the rank correlation of each error with
accuracy, across methods at one sparsity, and within a method: over sparsities, where both move with
the sparsity and little else can come out, and over draws at one sparsity, where they need not.
"""

import copy
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from bench.paper.reporting import correlations
from bench.paper.reporting.correlations import (
    across,
    correlated,
    over_draws,
    over_sparsities,
    unbiased,
)
from bench.paper.reporting.measures import ERRORS, errors_of, spectra_of
from bench.paper.reporting.numbers import Records, distinct, values
from bench.paper.reporting.output import Result, panels, style
from bench.paper.reporting.statistics import mean_interval
from bench.paper.runs.dense import Dense, trained
from bench.paper.runs.jobs import Settings, kept, run_all
from bench.paper.tasks.methods import (
    DRAWN,
    FEW,
    FEW_DRAWN,
    PLAIN,
    SETTINGS,
    Setting,
    pruned,
)
from bench.paper.training.data import Part
from bench.paper.training.loop import Judge, accuracy
from bench.tables import Table
from bench.tidy import Row, as_written, over_seeds, records

SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
#: Draws of one method on one network at each of these sparsities.
DRAWS, DRAWN_AT = 8, (0.5, 0.8)
NOTES = {
    "rho": "Spearman's correlation of an error with accuracy, with its 95 % interval; a variant is "
    "what it is over",
    "left out": "the errors of each network: their means over the seeds are here; single draws: "
    "the mean and the standard deviation of their accuracy on each network are here",
}


def run(settings: Settings) -> Result:
    """Prune each dense network in every way, and correlate."""
    cases = [(seed, setting) for seed in settings.runs for setting in chosen(settings)]
    found = run_all(settings, [partial(prepared, settings, seed) for seed in settings.runs])
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    drawing = FEW_DRAWN if settings.chosen.thinned else DRAWN
    drawing = drawing[:1] if settings.quick else drawing
    cases = [(seed, setting) for seed in settings.runs for setting in drawing]
    drawn = run_all(settings, [partial(draws, settings, *case) for case in cases])
    rows = [row for part in found for row in part]
    repeats = [row for part in drawn for row in part]
    rho = {
        "across": across(rows),
        "across, without the rescaled": across([r for r in rows if not unbiased(r)]),
        "over sparsities": over_sparsities(rows),
        "over draws": over_draws(repeats),
    }
    dense = run_all(settings, [partial(dense_accuracy, settings, seed) for seed in settings.runs])
    told = as_written([*numbers(rows, repeats, dense), *correlations.numbers(rho)])
    return Result(
        "oneshot", settings, told, tables(settings, told), {"": figure(settings, rows, dense)},
        notes=NOTES,
    )  # fmt: skip


def chosen(settings: Settings) -> list[Setting]:
    """All settings; few where it must be quick, or where the network is thinned."""
    if settings.quick:
        return [PLAIN[0], PLAIN[1], PLAIN[2], SETTINGS[-1]]
    return FEW if settings.chosen.thinned else SETTINGS


def sparsities(settings: Settings) -> tuple[float, ...]:
    """All sparsities; few where it must be quick."""
    return (0.5, 0.9) if settings.quick else SPARSITIES


def images(settings: Settings) -> tuple[int, ...]:
    """How many of the first test images judge a row, as a tuple of one; empty where all do."""
    judges = settings.chosen.judges
    return () if judges is None else (judges,)


def of_images(settings: Settings) -> str:
    """The same, for a table's title."""
    return "".join(f" on the first {count:,} test images" for count in images(settings))


def judged(settings: Settings, model: nn.Module, judge: Judge = accuracy) -> float:
    """Accuracy, or what else it is judged by, on those test images."""
    part = settings.images().test
    for count in images(settings):
        part = Part(part.images[:count], part.labels[:count])
    return judge(model, part, settings.chosen.prepare, settings.device)


def prepared(settings: Settings, seed: int) -> None:
    """The dense network, in the cache."""
    trained(settings, seed)


def dense_accuracy(settings: Settings, seed: int) -> float:
    """Accuracy before pruning."""
    return float(kept(settings, "dense", lambda: judged(settings, trained(settings, seed).model),
                      seed, settings.recipe, *images(settings)))  # fmt: skip


def one(settings: Settings, seed: int, setting: Setting) -> list[dict[str, Any]]:
    """A row a sparsity for one dense network and one method."""

    def measure() -> list[dict[str, Any]]:
        dense = trained(settings, seed)
        known = spectra_of(dense.model)
        return [
            row(settings, dense, known, setting, sparsity, seed)
            for sparsity in sparsities(settings)
        ]

    return list(kept(settings, "oneshot", measure, settings.recipe, seed, setting,
                     sparsities(settings), *images(settings)))  # fmt: skip


def draws(settings: Settings, seed: int, setting: Setting) -> list[dict[str, Any]]:
    """Several draws of one method on one dense network."""

    def measure() -> list[dict[str, Any]]:
        dense = trained(settings, seed)
        known = spectra_of(dense.model)
        return [
            row(settings, dense, known, setting, sparsity, seed, draw)
            for sparsity in DRAWN_AT
            for draw in range(1, 1 + (4 if settings.quick else DRAWS))
        ]

    return list(kept(settings, "draws", measure, settings.recipe, seed, setting, settings.quick,
                     DRAWS, DRAWN_AT, *images(settings)))  # fmt: skip


def row(
    settings: Settings, dense: Dense, known: Any, setting: Setting, sparsity: float, seed: int,
    draw: int = 0, judge: Judge = accuracy,
) -> dict[str, Any]:  # fmt: skip
    """Prune a copy and measure it."""
    model = copy.deepcopy(dense.model)
    names = pruned(model, setting, sparsity, 1000 * draw + seed)
    return {
        "seed": seed,
        "setting": setting.label,
        "rescaled": setting.rescale is True
        or (setting.method, setting.rescale) == ("randomized", None),
        "requested": sparsity,
        "draw": draw,
        "test": judged(settings, model, judge),
        **errors_of(model, dense.model, known, names),
    }


# Tables and figure


def numbers(
    rows: list[dict[str, Any]], repeats: list[dict[str, Any]], dense: list[float]
) -> list[Row]:
    """Accuracies for each seed, errors over the seeds, and the mean and spread of the draws."""
    found = [Row("", seed, "", None, "dense", value) for seed, value in enumerate(dense)]
    found += [Row("", row["seed"], row["setting"], row["requested"], "test", row["test"])
              for row in rows]  # fmt: skip
    found += over_seeds(
        [
            Row("", row["seed"], row["setting"], row["requested"], key, row[key])
            for row in rows
            for key in ERRORS
        ]
    )
    draws: dict[tuple[Any, ...], list[float]] = {}
    for row in repeats:
        place = ("draws", row["seed"], row["setting"], row["requested"])
        draws.setdefault(place, []).append(row["test"])
    for place, accuracies in draws.items():
        found.append(Row(*place, "test", float(np.mean(accuracies))))
        found.append(Row(*place, "test, deviation", float(np.std(accuracies, ddof=1))))
    return found


def tables(settings: Settings, rows: list[Row]) -> list[Table]:
    """Accuracies, then correlations."""
    found = records(rows)
    return [accuracies(settings, found), *correlated(correlations.read(found))]


def accuracies(settings: Settings, found: Records) -> Table:
    """A row a method, a column a sparsity."""
    found = [record for record in found if not record["variant"]]
    columns = sorted(distinct(found, "sparsity", "test"))
    before = mean_interval(values(found, "dense")).show(100, 2)
    shown = Table(
        f"Test accuracy, %, one shot{of_images(settings)}; dense {before}",
        ("method", *(f"{column:.0%}" for column in columns)),
    )
    for label in distinct(found, "setting", "test"):
        cells = (values(found, "test", setting=label, sparsity=column) for column in columns)
        shown.rows.append((label, *(mean_interval(cell).show(100) for cell in cells)))
    return shown


def figure(settings: Settings, rows: list[dict[str, Any]], dense: list[float]) -> Any:
    """Accuracy against sparsity, then against each error."""
    drawn, axes = panels(f"One-shot pruning, {settings.label}", 4, width=4.2, height=4.6)
    labels = list(dict.fromkeys(row["setting"] for row in rows))
    for index, label in enumerate(labels):
        mine = [row for row in rows if row["setting"] == label]
        columns = sorted({row["requested"] for row in mine})

        def mean(key: str, column: float, mine: list[dict[str, Any]] = mine) -> float:
            return float(np.mean([row[key] for row in mine if row["requested"] == column]))

        test = [100 * mean("test", column) for column in columns]
        axes[0].plot([100 * column for column in columns], test, **style(index), label=label)
        for axis, key in zip(axes[1:], ERRORS, strict=True):
            look = style(index) | {"linestyle": "none"}
            axis.plot([mean(key, column) for column in columns], test, **look)
            axis.set(xlabel=f"{key} error", xscale="log")
    axes[0].axhline(100 * float(np.mean(dense)), color="grey", linewidth=0.8)
    axes[0].set(xlabel="sparsity (%)", ylabel="test accuracy (%)")
    drawn.legend(loc="outside lower center", ncols=6, fontsize=6, frameon=False)
    return drawn
