"""The lottery ticket, rewound further and less far, against new random weights under its mask.

The mask is that of magnitude pruning after the training. The weights under it go back to where they
were after some epochs, 0 being initialisation (Frankle and Carbin, arXiv 1803.03635; Frankle et
al., arXiv 1912.05671), and are trained for as long as any method of `headtohead`. If it is the mask
that wins, new weights do as well; beside them stand the trained weights, trained on.
"""

from functools import partial
from typing import Any

import numpy as np
from torch import nn

import spectral_engine as se
from bench.paper.reporting.numbers import distinct, values
from bench.paper.reporting.output import Result, panels, style
from bench.paper.reporting.statistics import mean_interval
from bench.paper.runs.dense import build, tested, trained
from bench.paper.runs.jobs import Settings, kept, run_all, say
from bench.paper.tasks import headtohead
from bench.paper.training.loop import Training
from bench.tables import Table
from bench.tidy import Row, as_written, records

SPARSITIES = (0.8, 0.9, 0.95)
#: Epochs after which the weights are taken.
EPOCHS = (0, 1, 2, 3)
NEW, TRAINED = "new random weights", "trained weights"


def run(settings: Settings) -> Result:
    """Every start at every sparsity and seed."""
    sparsities = SPARSITIES[:1] if settings.quick else SPARSITIES
    some = EPOCHS[:2] if settings.quick else EPOCHS
    epochs = [epoch for epoch in some if epoch <= settings.recipe.epochs]
    run_all(settings, [partial(headtohead.prepared, settings, seed) for seed in settings.runs])
    cases = [
        (seed, start, sparsity)
        for seed in settings.runs
        for start in (*map(rewound, epochs), NEW, TRAINED)
        for sparsity in sparsities
    ]
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    rows = [
        {"seed": seed, "start": start, "requested": sparsity, **result}
        for (seed, start, sparsity), result in zip(cases, found, strict=True)
    ]
    dense = [float(trained(settings, seed).test) for seed in settings.runs]
    told = as_written(numbers(rows, dense))
    return Result("rewinding", settings, told, tables(told), {"": figure(settings, rows, dense)})


def rewound(epoch: int) -> str:
    """How tables call weights of an epoch."""
    return f"weights after epoch {epoch}" if epoch else "initial weights"


def one(settings: Settings, seed: int, start: str, sparsity: float) -> dict[str, Any]:
    """Test accuracy of the weights under the mask, and after their training."""
    if start == TRAINED:
        return headtohead.one(settings, seed, "magnitude", sparsity)
    later = headtohead.later(settings)

    def measure() -> dict[str, Any]:
        dense = trained(settings, seed).model
        se.prune(dense, "magnitude", sparsity, seed=seed, progress=False)
        model = begun(settings, seed, start)
        se.apply_masks(model, se.masks(dense))
        pruned = tested(settings, model)
        what = f"{start}, {sparsity:.0%}"
        end = headtohead.train(settings, model, seed, what, [later])
        return {"pruned": pruned, "retrained": end}

    return dict(kept(settings, "rewinding", measure, settings.recipe, later, seed, start, sparsity))


def begun(settings: Settings, seed: int, start: str) -> nn.Module:
    """The network as it was on the way to the dense one, or with other initial weights."""
    if start == NEW:
        return build(settings, 1000 + seed)
    model, recipe = build(settings, seed), settings.recipe
    epoch = next(epoch for epoch in EPOCHS if rewound(epoch) == start)
    Training(
        model=model,
        data=settings.images(),
        prepare=settings.chosen.prepare,
        segments=[recipe],
        seed=seed,
        path=settings.folder("early", recipe, seed, epoch) / "run.safetensors",
        device=settings.device,
        progress=say(settings, seed, start),
    ).run(epoch)
    return model


def numbers(rows: list[dict[str, Any]], dense: list[float]) -> list[Row]:
    """Test accuracies: of each start, under the mask and after its training; and dense."""
    found = [Row("", seed, "", None, "dense", value) for seed, value in enumerate(dense)]
    return found + [
        Row("", row["seed"], row["start"], row["requested"], part, row[part])
        for row in rows
        for part in headtohead.PARTS
    ]


def tables(rows: list[Row]) -> list[Table]:
    """A row a start, a column a sparsity; what it has over new weights, seed by seed."""
    found = records(rows)
    sparsities = sorted(distinct(found, "sparsity", "retrained"))
    dense = mean_interval(values(found, "dense"))
    shown = Table(
        f"Test accuracy, %, after {headtohead.RETRAIN} epochs under the mask; dense "
        f"{dense.show(100, 2)}",
        ("start", *(f"{sparsity:.0%}" for sparsity in sparsities),
         *(f"{sparsity:.0%}, over new" for sparsity in sparsities)),
    )  # fmt: skip
    new = [values(found, "retrained", setting=NEW, sparsity=sparsity) for sparsity in sparsities]
    for start in distinct(found, "setting", "retrained"):
        ends = [values(found, "retrained", setting=start, sparsity=at) for at in sparsities]
        over = [
            mean_interval([a - b for a, b in zip(mine, other, strict=True)])
            for mine, other in zip(ends, new, strict=True)
        ]
        shown.rows.append(
            (
                start,
                *(mean_interval(mine).show(100, 2) for mine in ends),
                *("-" if start == NEW else one.show(100, 2) for one in over),
            )
        )
    return [shown]


def ends(rows: list[dict[str, Any]], start: str, sparsity: float) -> list[float]:
    """Accuracies at the end, one a seed."""
    return [r["retrained"] for r in rows if (r["start"], r["requested"]) == (start, sparsity)]


def figure(settings: Settings, rows: list[dict[str, Any]], dense: list[float]) -> Any:
    """Accuracy against the epoch rewound to, a line for each sparsity; dashed, new weights."""
    drawn, axes = panels(f"Rewinding, {settings.label}", 1, width=6.4)
    starts = {row["start"] for row in rows}
    epochs = [epoch for epoch in EPOCHS if rewound(epoch) in starts]
    for index, sparsity in enumerate(sorted({row["requested"] for row in rows})):
        found = [mean_interval(ends(rows, rewound(epoch), sparsity)) for epoch in epochs]
        means = [100 * one.estimate for one in found]
        bars = [100 * (one.high - one.estimate) for one in found]
        axes[0].errorbar(epochs, means, bars, **style(index), capsize=2, label=f"{sparsity:.0%}")
        new = 100 * float(np.mean(ends(rows, NEW, sparsity)))
        axes[0].axhline(new, color=style(index)["color"], linestyle="--", linewidth=0.8)
    axes[0].axhline(100 * float(np.mean(dense)), color="grey", linewidth=0.8)
    axes[0].set(xlabel="weights of epoch (dashed: new ones; grey: dense)")
    axes[0].set(ylabel="test accuracy (%)", xticks=epochs)
    axes[0].legend(fontsize=7)
    return drawn
