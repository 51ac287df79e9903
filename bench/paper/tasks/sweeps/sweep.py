"""What the open questions have in common: variants of a network, each trained, pruned, retrained.

For each variant: how soon its spectra settle, how far it can be pruned in one shot and with
retraining, and whether the spectral error tells its accuracy.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.paper.reporting.measures import ERRORS, spectra_of
from bench.paper.reporting.numbers import Records, distinct, values
from bench.paper.reporting.output import Result, falling_share, listed, panels, style
from bench.paper.reporting.statistics import mean_interval, spearman
from bench.paper.runs.dense import trained
from bench.paper.runs.jobs import Settings, kept, run_all
from bench.paper.tasks.iterative import TEST, follow
from bench.paper.tasks.methods import Setting
from bench.paper.tasks.oneshot import row as measured
from bench.paper.tasks.plans import Plan
from bench.paper.training.loop import Recipe
from bench.tables import Table
from bench.tidy import Row, as_written, over_seeds, records

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
METHODS = (Setting("magnitude"), Setting("random"), Setting("randomized", "l1"),
           Setting("principal"), Setting("aligned"))  # fmt: skip
#: Prune and retrain: sparsities with an epoch after each.
ROUNDS = ((0.5, 1), (0.8, 1), (0.9, 1), (0.95, 1), (0.98, 1), (0.99, 1))
#: A network is pruned too far when it has lost this much accuracy.
LOSS = 0.01
#: Metrics of the CSV that are one number a network, by their names in what `one` gives.
FIGURES = {
    "test": "test",
    "weights": "weights",
    "settled": "settled",
    "moved": "moved",
    **{f"rho {key}": key for key in ERRORS},
    "one shot limit": "one_shot_limit",
    "retrained limit": "retrained_limit",
}
LEFT_OUT = (
    "the errors of each pruned network, whose rank correlations with accuracy stand as rho; the "
    "spectra of the rounds"
)


@dataclass(frozen=True)
class Variant:
    """One network of a sweep. model: makes it anew; None for the settings' own network."""

    label: str
    recipe: Recipe
    model: Callable[[], nn.Module] | None = None


def run(
    task: str, settings: Settings, variants: Sequence[Variant], subject: str | None = None
) -> Result:
    """Every variant at every seed. subject: what they are, if not the settings' own network."""
    if settings.quick:
        variants = variants[:1]
    cases = [(variant, seed) for variant in variants for seed in settings.runs]
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    rows = [
        {"variant": variant.label, "seed": seed, **result}
        for (variant, seed), result in zip(cases, found, strict=True)
    ]
    told = as_written(numbers(rows))
    recipes = {variant.label: vars(shortened(settings, variant)) for variant in variants}
    return Result(
        task, settings, told, tables(shortened(settings, variants[0]).epochs, told),
        {"": figure(f"{task}, {subject or settings.label}", rows)}, subject, notes(recipes),
    )  # fmt: skip


def notes(recipes: dict[str, dict[str, Any]]) -> dict[str, str]:
    """For the head of the CSV: the recipe of each variant, or the one that all share."""
    told = {f"recipe of {variant}": listed(recipe) for variant, recipe in recipes.items()}
    if len(set(told.values())) == 1:
        told = {"recipe of all variants": next(iter(told.values()))}
    return told | {"left out": LEFT_OUT}


def numbers(rows: list[dict[str, Any]]) -> list[Row]:
    """What `one` gives, for each seed; of pruning in one shot, the mean over the seeds."""
    found = []
    for row in rows:
        place = (row["variant"], row["seed"], "")
        told = {name: row[key] for name, key in FIGURES.items()}
        found += [Row(*place, None, name, x) for name, x in told.items() if x is not None]
        for one in row["retrained"]:
            for part in ("pruned", "retrained"):
                accuracy = one[f"accuracy_{part}"][TEST]
                found.append(Row(*place, one["requested"], part, accuracy))
    one_shot = [
        Row(row["variant"], row["seed"], one["setting"], one["requested"], "one shot", one["test"])
        for row in rows
        for one in row["one_shot"]
    ]
    return found + over_seeds(one_shot)


def tables(epochs: int, rows: list[Row]) -> list[Table]:
    """A row a variant."""
    shown = Table(
        f"{epochs} epochs; largest sparsity within {LOSS:.0%} of "
        "dense accuracy, by magnitude; Spearman's correlation of error and accuracy over methods "
        "and sparsities",
        ("variant", "weights", "dense accuracy", "moved at 25 %", "settled, epoch", "of runs",
         "one shot", "retrained", "rho spectral", "rho frobenius"),
    )  # fmt: skip
    found = records(rows)
    for variant in distinct(found, "variant", "test"):
        mine = [record for record in found if record["variant"] == variant]
        settled = values(mine, "settled")
        shown.rows.append(
            (
                variant,
                f"{values(mine, 'weights')[0]:,}",
                cell(mine, "test", 100, 2),
                cell(mine, "moved", 100, 0),
                mean_interval(settled).show(),
                f"{len(settled)}/{len(values(mine, 'test'))}",
                cell(mine, "one shot limit", 100),
                cell(mine, "retrained limit", 100),
                cell(mine, "rho spectral", 1, 2),
                cell(mine, "rho frobenius", 1, 2),
            )
        )
    return [shown]


def cell(found: Records, metric: str, scale: float, digits: int = 1) -> str:
    """A mean over seeds with its interval."""
    return mean_interval(values(found, metric)).show(scale, digits)


def shortened(settings: Settings, variant: Variant) -> Recipe:
    """The variant's recipe, in as many epochs as the settings ask for."""
    recipe = replace(variant.recipe, epochs=1) if settings.quick else variant.recipe
    return replace(recipe, epochs=settings.epochs or recipe.epochs)


def one(settings: Settings, variant: Variant, seed: int) -> dict[str, Any]:
    """One variant at one seed."""

    recipe = shortened(settings, variant)
    rounds = ROUNDS[-2:] if settings.quick else ROUNDS
    sparsities = SPARSITIES[-2:] if settings.quick else SPARSITIES

    def measure() -> dict[str, Any]:
        torch.manual_seed(seed)
        model = None if variant.model is None else variant.model()
        dense = trained(settings, seed, recipe, model, variant.label)
        known = spectra_of(dense.model)
        rows = [
            measured(settings, dense, known, method, sparsity, seed)
            for method in METHODS
            for sparsity in sparsities
        ]
        plan = Plan("short ladder", rounds, recipe.rate / 2, recipe.decay)
        retrained = follow(settings, copy.deepcopy(dense.model), seed, plan, recipe, variant.label)
        return {
            "test": dense.test,
            "weights": sum(weight.numel() for weight in dense.model.parameters()),
            "one_shot": rows,
            "retrained": retrained["rounds"],
            **settling(dense),
            **{key: spearman([r[key] for r in rows], [r["test"] for r in rows]) for key in ERRORS},
            "one_shot_limit": limit(
                dense.test,
                sparsities,
                [r["test"] for r in rows if r["setting"] == METHODS[0].label],
            ),
            "retrained_limit": limit(
                dense.test,
                [sparsity for sparsity, _ in rounds],
                [one["accuracy_retrained"][TEST] for one in retrained["rounds"]],
            ),
        }

    return dict(kept(settings, "sweep", measure, variant.label, recipe, seed, rounds, sparsities))


def settling(dense: Any) -> dict[str, Any]:
    """The epoch at which the last weight settled, None if one never did; how far all had moved."""
    steps = [dense.tracker.stabilised()[name] for name in dense.tracker.names]
    moved = []
    for name in dense.tracker.names:
        values = dense.tracker.singular_values(name)
        way = np.linalg.norm(values - values[-1], axis=1)
        moved.append(1.0 - way[len(way) // 4] / max(float(way[0]), 1e-12))
    never = any(step is None for step in steps)
    return {
        "settled": None if never else max(steps) / dense.steps_per_epoch,
        "moved": float(np.mean(moved)),
    }


def limit(dense: float, sparsities: Sequence[float], reached: Sequence[float]) -> float:
    """The sparsity at which the loss of accuracy first comes to `LOSS`, by interpolation.

    The loss is 0 at sparsity 0. Where it never comes to `LOSS`, this is the largest sparsity.
    """
    before, lost_before = 0.0, 0.0
    for sparsity, accuracy in zip(sparsities, reached, strict=True):
        lost = dense - accuracy
        if lost >= LOSS:
            share = (LOSS - lost_before) / (lost - lost_before)
            return before + share * (sparsity - before)
        before, lost_before = sparsity, lost
    return before


def figure(title: str, rows: list[dict[str, Any]]) -> Any:
    """Accuracy against sparsity, in one shot and with retraining, a line for each variant."""
    drawn, axes = panels(f"{title}: pruned by magnitude", 2)
    for index, label in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        mine = [row for row in rows if row["variant"] == label]
        one_shot = [
            {one["requested"]: one["test"] for one in row["one_shot"]
             if one["setting"] == METHODS[0].label}
            for row in mine
        ]  # fmt: skip
        retrained = [
            {one["requested"]: one["accuracy_retrained"][TEST] for one in row["retrained"]}
            for row in mine
        ]
        for axis, found in zip(axes, (one_shot, retrained), strict=True):
            left = list(found[0])
            means = [100 * float(np.mean([one[at] for one in found])) for at in left]
            axis.plot([1 - at for at in left], means, **style(index), label=label)
    for axis, name in zip(axes, ("one shot", "an epoch after each pruning"), strict=True):
        axis.set(title=name, ylabel="test accuracy (%)")
        falling_share(axis)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    return drawn
