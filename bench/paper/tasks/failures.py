"""Where does keeping the spectrum fail to tell the performance?

Over sparsity, normalisation and loss: small perceptrons, pruned in one shot by one method of each
kind; the rank correlation of each error with performance over the methods, as in `oneshot`.
Performance is accuracy, of autoencoders the share of the images' variance that they give back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from bench.paper.reporting import correlations
from bench.paper.reporting.correlations import across
from bench.paper.reporting.measures import ERRORS, spectra_of
from bench.paper.reporting.numbers import values
from bench.paper.reporting.output import Result, panels
from bench.paper.reporting.statistics import mean_interval
from bench.paper.runs.dense import Dense, trained
from bench.paper.runs.jobs import Settings, kept, run_all
from bench.paper.tasks.oneshot import chosen, images, judged, of_images, row, sparsities
from bench.paper.training.networks import CLASSES, ROWS, mlp, wide
from bench.paper.training.objectives import OBJECTIVES
from bench.tables import Table
from bench.tidy import Row, as_written, over_seeds, records

DEPTH, WIDTH = 2, 64
NOTES = {
    "test": "accuracy, or of reconstruction the share of the variance explained; a variant is a "
    "condition",
    "rho": "Spearman's correlation of an error with it over methods, with its 95 % interval",
    "left out": "the errors, and the performance of each seed's network: the mean is here",
}


@dataclass(frozen=True)
class Condition:
    """A loss, by its name among `OBJECTIVES`, and whether batch normalisation stands between."""

    loss: str
    norm: bool

    @property
    def label(self) -> str:
        """How tables call it."""
        return f"{self.loss}, {'normalised' if self.norm else 'plain'}"


CONDITIONS = [Condition(loss, norm) for loss in OBJECTIVES for norm in (False, True)]


def run(settings: Settings) -> Result:
    """Every condition at every seed."""
    settings = replace(settings, network="mlp")
    conditions = CONDITIONS[-2:] if settings.quick else CONDITIONS
    cases = [(condition, seed) for condition in conditions for seed in settings.runs]
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    runs = [
        {"condition": condition.label, "seed": seed, **result}
        for (condition, seed), result in zip(cases, found, strict=True)
    ]
    told = {
        condition.label: across(list(rows_of(runs, condition.label))) for condition in conditions
    }
    rows = as_written(numbers(runs, told))
    drawn = {"": figure(settings, told)}
    return Result("failures", settings, rows, tables(settings, rows), drawn, notes=NOTES)


def one(settings: Settings, condition: Condition, seed: int) -> dict[str, Any]:
    """One network: its performance, and a row for each method and sparsity."""
    methods, places = chosen(settings), sparsities(settings)
    judge = OBJECTIVES[condition.loss].judge
    depends = (condition, settings.recipe, seed)

    def measure() -> dict[str, Any]:
        dense = learnt(settings, condition, seed)
        known = spectra_of(dense.model)
        rows = [
            row(settings, dense, known, method, sparsity, seed, judge=judge)
            for method in methods
            for sparsity in places
        ]
        return {"rows": rows}

    def before() -> float:
        return judged(settings, learnt(settings, condition, seed).model, judge)

    found = kept(settings, "failures", measure, *depends, methods, places, *images(settings))
    return {**found, "dense": kept(settings, "dense", before, *depends, *images(settings))}


def learnt(settings: Settings, condition: Condition, seed: int) -> Dense:
    """The dense network of a condition."""
    torch.manual_seed(seed)
    outputs = ROWS * ROWS if condition.loss == "reconstruction" else CLASSES
    model = mlp(DEPTH, wide(WIDTH, settings.width), condition.norm, outputs=outputs)
    return trained(settings, seed, None, model, condition.label, OBJECTIVES[condition.loss])


def rows_of(runs: list[dict[str, Any]], condition: str) -> Iterator[dict[str, Any]]:
    """All rows of a condition."""
    for one in runs:
        if one["condition"] == condition:
            yield from one["rows"]


def numbers(runs: list[dict[str, Any]], told: dict[str, list[dict[str, Any]]]) -> list[Row]:
    """Performance, dense a seed each and pruned over the seeds; the correlations."""
    found = [Row(run["condition"], run["seed"], "", None, "dense", run["dense"]) for run in runs]
    pruned = [
        Row(run["condition"], run["seed"], one["setting"], one["requested"], "test", one["test"])
        for run in runs
        for one in run["rows"]
    ]
    best = [
        Row(condition, None, "", place["sparsity"], "best", place["best"])
        for condition, places in told.items()
        for place in places
    ]
    return [*found, *over_seeds(pruned), *best, *correlations.numbers(told)]


def tables(settings: Settings, rows: list[Row]) -> list[Table]:
    """A row a condition and sparsity."""
    shown = Table(
        "Spearman's correlation of error with performance over methods; performance is accuracy, "
        f"of reconstruction the variance explained, in %{of_images(settings)}",
        ("condition", "sparsity", "dense", "best", *ERRORS, "spectral over frobenius"),
    )
    found = records(rows)
    for condition, places in correlations.read(found).items():
        dense = mean_interval(values(found, "dense", variant=condition))
        for place in places:
            at = place["sparsity"]
            best = values(found, "best", variant=condition, sparsity=at)[0]
            cells = (place[key].show(digits=2) for key in (*ERRORS, "better"))
            shown.rows.append(
                (condition, f"{at:.0%}", dense.show(100), f"{100 * best:.1f}", *cells)
            )
    return [shown]


def figure(settings: Settings, told: dict[str, list[dict[str, Any]]]) -> Any:
    """A map for each error, conditions by sparsities; a dot where the interval holds 0."""
    drawn, axes = panels(
        f"Rank correlation of error and performance over methods, {settings.label}; "
        "a dot: no different from 0", len(ERRORS), width=5.2, height=4.2,
    )  # fmt: skip
    ticks = [f"{100 * place['sparsity']:.0f}" for place in next(iter(told.values()))]
    for axis, key in zip(axes, ERRORS, strict=True):
        found = [[place[key] for place in places] for places in told.values()]
        values = np.array([[interval.estimate for interval in line] for line in found])
        image = axis.imshow(values, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for y, line in enumerate(found):
            for x, interval in enumerate(line):
                if not (interval.high < 0.0 or interval.low > 0.0):
                    axis.plot(x, y, "k.", markersize=4)
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_yticks(range(len(told)), list(told))
        axis.set(title=f"{key} error", xlabel="sparsity (%)")
        axis.grid(visible=False)
    for axis in axes[1:]:
        axis.set_yticklabels([])
    drawn.colorbar(image, ax=axes, shrink=0.8)
    return drawn
