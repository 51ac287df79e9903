"""Task 2, one-shot pruning: does keeping the spectrum keep the accuracy, and which method keeps it?

Every method at every sparsity, without retraining; then the rank correlation of each error with
accuracy, across methods at one sparsity, and within a method: over sparsities, where both move with
the sparsity and little else can come out, and over draws at one sparsity, where they need not.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import spectral_engine as se
from bench.paper.dense import Dense, tested, trained
from bench.paper.jobs import Settings, kept, run_all
from bench.paper.measures import ERRORS, errors_of, spectra_of
from bench.paper.output import Result, Table, panels, style
from bench.paper.statistics import mean_interval, spearman, spearman_interval
from spectral_engine.methods import REFITS

SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
LAWS = ("l1", "l2", "hybrid", "row-l1", "bernstein", "am07", "trimmed-l2", "quantised")
#: Draws of one method on one network at each of these sparsities.
DRAWS, DRAWN_AT = 8, (0.5, 0.8)


@dataclass(frozen=True)
class Setting:
    """A method as `prune` takes it; "random" keeps entries regardless of what they are."""

    method: str
    law: str | None = None
    rescale: bool | None = None
    mixture: float | None = None
    refit: str | None = None

    @property
    def label(self) -> str:
        """How tables and plots call it."""
        rescaled = {None: "", True: "rescaled", False: "not rescaled"}[self.rescale]
        mixture = "" if self.mixture is None else f"unmixed{'' if self.law else ' threshold'}"
        parts = (self.method, mixture, self.law, rescaled, self.refit and f"+ {self.refit}")
        return " ".join(part for part in parts if part)

    @property
    def draws(self) -> bool:
        """Whether two seeds differ."""
        return self.method in ("random", "randomized") or self.law not in (None, "threshold")


PRINCIPAL = [
    Setting("principal", law, rescale, 0.0) for law in ("l1", "l2") for rescale in (False, True)
]
PLAIN = [
    Setting("magnitude"), Setting("random"),
    *(Setting("randomized", law) for law in LAWS),
    Setting("principal"), Setting("principal", mixture=0.0), *PRINCIPAL, Setting("aligned"),
]  # fmt: skip
REFITTED = [
    Setting("magnitude"), Setting("randomized", "l1"), Setting("randomized", "l1", False),
    Setting("principal"), Setting("principal", "l1", False, 0.0), Setting("aligned"),
]  # fmt: skip
#: Refits that need no calibration.
DATA_FREE = [refit for refit in ("scale", "spectral") if refit in REFITS]
SETTINGS = [
    *PLAIN,
    *(Setting(**vars(one) | {"refit": refit}) for one in REFITTED for refit in DATA_FREE),
]
DRAWN = [Setting("random"), Setting("randomized", "l1"), Setting("randomized", "l2"), PRINCIPAL[0]]


def run(settings: Settings) -> Result:
    """Prune each dense network in every way, and correlate."""
    cases = [(seed, setting) for seed in settings.runs for setting in chosen(settings)]
    found = run_all(settings, [partial(prepared, settings, seed) for seed in settings.runs])
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    drawing = DRAWN[:1] if settings.quick else DRAWN
    cases = [(seed, setting) for seed in settings.runs for setting in drawing]
    drawn = run_all(settings, [partial(draws, settings, *case) for case in cases])
    rows = [row for part in found for row in part]
    repeats = [row for part in drawn for row in part]
    correlations = {
        "across": across(rows),
        "across, without the rescaled": across([r for r in rows if not unbiased(r)]),
        "over sparsities": over_sparsities(rows),
        "over draws": over_draws(repeats),
    }
    dense = run_all(settings, [partial(dense_accuracy, settings, seed) for seed in settings.runs])
    summary = {"dense": dense, "rows": rows, "draws": repeats, "correlations": correlations}
    return Result(
        "oneshot", settings, summary, [accuracies(rows, dense), *correlated(correlations)],
        {"": figure(settings, rows, dense)},
    )  # fmt: skip


def chosen(settings: Settings) -> list[Setting]:
    """All; few where it must be quick."""
    return [PLAIN[0], PLAIN[1], PLAIN[2], SETTINGS[-1]] if settings.quick else SETTINGS


def sparsities(settings: Settings) -> tuple[float, ...]:
    """All; few where it must be quick."""
    return (0.5, 0.9) if settings.quick else SPARSITIES


def prepared(settings: Settings, seed: int) -> None:
    """The dense network, in the cache."""
    trained(settings, seed)


def dense_accuracy(settings: Settings, seed: int) -> float:
    """Test accuracy before pruning."""
    return float(kept(settings, "dense", lambda: trained(settings, seed).test, seed,
                      settings.recipe))  # fmt: skip


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
                     sparsities(settings)))  # fmt: skip


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
                     DRAWS, DRAWN_AT))  # fmt: skip


def row(
    settings: Settings, dense: Dense, known: Any, setting: Setting, sparsity: float, seed: int,
    draw: int = 0,
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
        "test": tested(settings, model),
        **errors_of(model, dense.model, known, names),
    }


def pruned(model: nn.Module, setting: Setting, sparsity: float, seed: int) -> list[str]:
    """Prune in place; the names of the weights pruned."""
    if setting.method == "random":
        return random(model, sparsity, seed)
    options = {key: value for key, value in vars(setting).items() if value is not None}
    report = se.prune(model, sparsity=sparsity, seed=seed, masks=False, **options)
    return list(dict.fromkeys(layer.name.partition("[")[0] for layer in report.layers))


def random(model: nn.Module, sparsity: float, seed: int) -> list[str]:
    """As many zeros as asked for in every weight, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, weight in model.named_parameters() if weight.ndim >= 2]
    with torch.no_grad():
        for name in names:
            weight = model.get_parameter(name)
            order = torch.randperm(weight.numel(), generator=generator)
            weight.view(-1)[order[: round(sparsity * weight.numel())]] = 0.0
    return names


# What the rows say


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


def known(values: list[float]) -> list[float]:
    """Without NaN: a correlation that is not defined, as where all accuracies are equal."""
    return [value for value in values if not np.isnan(value)]


# Tables and figure


def accuracies(rows: list[dict[str, Any]], dense: list[float]) -> Table:
    """A row a method, a column a sparsity."""
    columns = sorted({row["requested"] for row in rows})
    shown = Table(
        f"Test accuracy, %, one shot; dense {mean_interval(dense).show(100, 2)}",
        ("method", *(f"{column:.0%}" for column in columns)),
    )
    for label in dict.fromkeys(row["setting"] for row in rows):
        cells = (
            mean_interval(
                [r["test"] for r in rows if (r["setting"], r["requested"]) == (label, column)]
            ).show(100)
            for column in columns
        )
        shown.rows.append((label, *cells))
    return shown


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
