"""A network that others trained, EfficientNet-Lite0 on ImageNet: what tells its agreement?

No labelled photographs come with a package, so performance is how often the pruned network chooses
the dense one's class, and nothing is trained: it is pruned in one shot, as in `oneshot`. There is
one network, so the intervals are Fisher's, over methods. `--data` is the folder of packages that
`bench.quality.networks.efficientnet` asks for, which also says what is pruned.
"""

import copy
from dataclasses import replace
from typing import Any

from bench.paper.reporting import correlations
from bench.paper.reporting.measures import ERRORS, errors_of, spectra_of
from bench.paper.reporting.numbers import Records, distinct
from bench.paper.reporting.output import Result, panels, style
from bench.paper.reporting.statistics import Interval, spearman_interval
from bench.paper.runs.jobs import VERSION, Settings
from bench.paper.tasks.methods import FEW, PLAIN, Setting, by_prune
from bench.paper.training.store import remembered
from bench.quality.networks import efficientnet
from bench.quality.networks.network import Network
from bench.tables import Table
from bench.tidy import Row, as_written, records
from spectral_engine._util.threads import one_thread

NAME = "efficientnet-lite0"
#: The variant of the correlations in the CSV.
OVER = "over methods"
SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.4)
METHODS = [setting for setting in (*PLAIN, *FEW[-2:]) if setting.method != "random"]


def run(settings: Settings) -> Result:
    """Every method at every sparsity."""
    methods, sparsities = (METHODS[:5], (0.2, 0.4)) if settings.quick else (METHODS, SPARSITIES)
    network = efficientnet.load(settings.data)
    with one_thread():
        rows = [row for setting in methods for row in one(settings, network, setting, sparsities)]
    told = [
        {"sparsity": sparsity} | {key: correlation(rows, sparsity, key) for key in ERRORS}
        for sparsity in sparsities
    ]
    found = as_written(numbers(rows, told))
    return Result(
        "efficientnet", replace(settings, seeds=1), found, tables(found),
        {"": figure(rows)}, subject=f"{NAME}, ImageNet weights, {network.data}",
    )  # fmt: skip


def one(
    settings: Settings, network: Network, setting: Setting, sparsities: tuple[float, ...]
) -> list[dict[str, Any]]:
    """A row a sparsity for one method."""

    def measure() -> list[dict[str, Any]]:
        known = spectra_of(network.model)
        rows = []
        for sparsity in sparsities:
            model = copy.deepcopy(network.model)
            names = by_prune(model, setting, sparsity, 0, network.ignore)
            rows.append(
                {
                    "setting": setting.label, "requested": sparsity, **network.score(model),
                    **errors_of(model, network.model, known, names),
                }
            )  # fmt: skip
        return rows

    depends = [VERSION, network.data, repr(setting), sparsities]
    return list(remembered(settings.place(NAME, depends) / "efficientnet.json", measure))


def correlation(rows: list[dict[str, Any]], sparsity: float, key: str) -> Interval:
    """Of one error with agreement, over the methods at one sparsity."""
    here = [row for row in rows if row["requested"] == sparsity]
    return spearman_interval([row[key] for row in here], [row["agreement"] for row in here])


def numbers(rows: list[dict[str, Any]], told: list[dict[str, Any]]) -> list[Row]:
    """Agreement, cosine and errors; the correlations over methods."""
    found = [
        Row("", None, row["setting"], row["requested"], metric, row[metric])
        for row in rows
        for metric in ("agreement", "cosine", *ERRORS)
    ]
    return found + correlations.numbers({OVER: told})


def tables(rows: list[Row]) -> list[Table]:
    """Agreements, then correlations."""
    found = records(rows)
    return [agreements(found), correlated(correlations.read(found)[OVER])]


def agreements(found: Records) -> Table:
    """A row a method, a column a sparsity: agreement, spectral and Frobenius error."""
    sparsities = sorted(distinct(found, "sparsity", "agreement"))
    shown = Table(
        "Agreement with the dense network, %, one shot (spectral / Frobenius error)",
        ("method", *(f"{sparsity:.0%}" for sparsity in sparsities)),
    )
    for label in distinct(found, "setting", "agreement"):
        mine = {record["sparsity"]: record for record in found if record["setting"] == label}
        shown.rows.append((label, *(cell(mine[sparsity]) for sparsity in sparsities)))
    return shown


def cell(row: dict[str, Any]) -> str:
    """Of one method at one sparsity."""
    return f"{100 * row['agreement']:.1f} ({row['spectral']:.3f} / {row['frobenius']:.3f})"


def correlated(told: list[dict[str, Any]]) -> Table:
    """A row a sparsity."""
    title = "Spearman's correlation of error with agreement, over methods at one sparsity"
    shown = Table(title, ("sparsity", *ERRORS))
    for place in told:
        shown.rows.append(
            (f"{place['sparsity']:.0%}", *(place[key].show(digits=2) for key in ERRORS))
        )
    return shown


def figure(rows: list[dict[str, Any]]) -> Any:
    """Agreement against each error, a point for each sparsity of a method."""
    drawn, axes = panels("One-shot pruning, EfficientNet-Lite0", len(ERRORS), width=4.4, height=4.4)
    for index, label in enumerate(dict.fromkeys(row["setting"] for row in rows)):
        mine = [row for row in rows if row["setting"] == label]
        for axis, key in zip(axes, ERRORS, strict=True):
            look = style(index) | {"linestyle": "none"}
            shares = [100 * row["agreement"] for row in mine]
            axis.plot([row[key] for row in mine], shares, **look, label=label)
            axis.set(xlabel=f"{key} error", xscale="log")
    axes[0].set_ylabel("agreement with the dense network (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6, frameon=False)
    return drawn
