"""Task 3, iterative prune-retrain: the spectrum before pruning, after it, and after retraining.

A ladder of sparsities up to 99.5 % shows where the spectrum, and the accuracy, stop coming back.
The best recipe goes to one sparsity with a longer last round; beside it stands a dense control
which was trained as long, in the same rounds, since the dense network alone has had less.
"""

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

import spectral_engine as se
from bench.paper.reporting.numbers import Records, distinct, values
from bench.paper.reporting.output import Result, falling_share, panels, style
from bench.paper.reporting.statistics import mean_interval
from bench.paper.runs.dense import evaluate, trained
from bench.paper.runs.jobs import Settings, kept, run_all, say
from bench.paper.tasks.plans import BEST, CONTROL, Plan, plans
from bench.paper.training.loop import Recipe, Training, soft_targets
from bench.tables import Table
from bench.tidy import Row, as_written, records

#: Leading singular values by which recovery is judged.
LEADING = 32
#: Of the dense network's answers, where the pruned network learns from them.
TEMPERATURE = 2.0
#: A spectrum with less than this share of the dense network's has collapsed.
COLLAPSE = 0.5
NOTES = {
    "kept, recovered": f"the mean over a layer's {LEADING} leading singular values of "
    "min(sigma_i / sigma_i(dense), 1), after pruning and after retraining; a setting is a layer",
    "left out": "validation accuracies; the singular values",
}


def run(settings: Settings) -> Result:
    """All plans on the dense network of every seed."""
    run_all(settings, [partial(prepared, settings, seed) for seed in settings.runs])
    cases = [(seed, plan) for seed in settings.runs for plan in plans(settings)]
    found = run_all(settings, [partial(one, settings, *case) for case in cases])
    runs = [
        {"seed": seed, "plan": plan.label, "name": plan.name, **result}
        for (seed, plan), result in zip(cases, found, strict=True)
    ]
    told = as_written(numbers(runs))
    return Result(
        "iterative", settings, told, tables(told), {"": figure(settings, runs)}, notes=NOTES
    )


def prepared(settings: Settings, seed: int) -> None:
    """The dense network, in the cache."""
    trained(settings, seed)


def one(settings: Settings, seed: int, plan: Plan) -> dict[str, Any]:
    """One plan on one dense network: accuracies and spectra of each round."""

    def measure() -> dict[str, Any]:
        dense = trained(settings, seed)
        return {"dense": dense.test, **follow(settings, dense.model, seed, plan, settings.recipe)}

    return dict(kept(settings, "iterative", measure, settings.recipe, seed, plan, LEADING))


def follow(
    settings: Settings, model: nn.Module, seed: int, plan: Plan, recipe: Recipe, name: str = "dense"
) -> dict[str, Any]:
    """Prune and retrain as planned; saved after each epoch, from where a stopped run goes on.

    The model was trained by `recipe`; `name` tells it from others of the same settings.
    """
    starts = np.cumsum([0, *(epochs for _, epochs in plan.rounds)]).tolist()
    targets = dict(zip(starts, (sparsity for sparsity, _ in plan.rounds), strict=False))
    pruner = se.Pruner(model, se.Schedule(targets), plan.recipe, leading=LEADING, seed=seed)
    measured, data, prepare = Measured(), settings.images(), settings.chosen.prepare
    taught = None
    if plan.soft > 0.0:
        taught = soft_targets(model, data.train, prepare, plan.soft, TEMPERATURE, settings.device)

    def before_epoch(epoch: int) -> None:
        before = evaluate(settings, model) if epoch in targets else None
        if plan.pruned:
            pruner.step()
        if before is not None:
            measured.rows.append(
                {"accuracy_before": before, "accuracy_pruned": evaluate(settings, model)}
            )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", se.SpectrumCollapse)  # the tables count collapsed layers
        Training(
            model=model,
            data=data,
            prepare=prepare,
            targets=taught,
            segments=[
                replace(recipe, epochs=epochs, rate=plan.rate, decay=plan.decay, warmup=0.0)
                for _, epochs in plan.rounds
            ],
            seed=1000 + seed,
            path=settings.folder(name, recipe, seed, plan) / "run.safetensors",
            device=settings.device,
            before_epoch=before_epoch,
            followers={"pruner": pruner, "measured": measured},
            progress=say(settings, seed, plan.label),
        ).run()
        pruner.finish()
    ends = [*(row["accuracy_before"] for row in measured.rows[1:]), evaluate(settings, model)]
    spectra = [found.to_dict() for found in pruner.rounds] or [{}] * len(ends)
    return {
        "sizes": {name: weight.numel() for name, weight in model.named_parameters()},
        "rounds": [
            {**spectrum, "requested": sparsity, "epochs": epochs, **row, "accuracy_retrained": end}
            for (sparsity, epochs), spectrum, row, end in zip(
                plan.rounds, spectra, measured.rows, ends, strict=True
            )
        ],
    }


class Measured:
    """Accuracies on the way, saved with the training."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows = state["rows"]


TEST = 1  # of the pairs (validation, test) that `evaluate` gives


def numbers(runs: list[dict[str, Any]]) -> list[Row]:
    """What `one` gives, a seed each: test accuracies, and shares of the spectrum a layer."""
    found = []
    for run in runs:
        place = (run["plan"], run["seed"])
        found.append(Row(*place, "", None, "dense", run["dense"]))
        for one in run["rounds"]:
            sparsity = one["requested"]
            told = {"epochs": one["epochs"]} | {
                part: one[f"accuracy_{part}"][TEST] for part in ("before", "pruned", "retrained")
            }
            found += [Row(*place, "", sparsity, name, value) for name, value in told.items()]
            for part in ("kept", "recovered"):
                shares = one.get(part, {})
                found += [Row(*place, name, sparsity, part, x) for name, x in shares.items()]
    return found


def tables(rows: list[Row]) -> list[Table]:
    """One a plan, then the best recipes against their controls."""
    found = records(rows)
    plans = [plan for plan in distinct(found, "variant", "dense") if plan != CONTROL]
    return [
        *(plan_table(plan, [one for one in found if one["variant"] == plan]) for plan in plans),
        best_table([plan for plan in plans if plan.startswith(BEST)], found),
    ]


def plan_table(plan: str, found: Records) -> Table:
    """A row a round: accuracies, and the shares of the spectrum kept and recovered."""
    shown = Table(
        f"{plan}: test accuracy and the share of the dense network's leading singular values",
        ("sparsity", "epochs", "before", "pruned", "retrained", "spectrum kept",
         "recovered", "recovered, least layer", "collapsed layers"),
    )  # fmt: skip
    for sparsity in distinct(found, "sparsity", "retrained"):
        mine = [record for record in found if record["sparsity"] == sparsity]
        kept_, recovered = (over_layers(mine, part) for part in ("kept", "recovered"))
        shown.rows.append(
            (
                f"{sparsity:.1%}",
                f"{values(mine, 'epochs')[0]}",
                *(
                    mean_interval(values(mine, part)).show(100, 2)
                    for part in ("before", "pruned", "retrained")
                ),
                percent([float(np.mean(shares)) for shares in kept_]),
                percent([float(np.mean(shares)) for shares in recovered]),
                percent([min(shares) for shares in recovered]),
                mean_interval(
                    [float(sum(share < COLLAPSE for share in shares)) for shares in recovered]
                ).show(),
            )
        )
    return shown


def over_layers(found: Records, part: str) -> list[list[float]]:
    """A share of every layer, for each seed."""
    return [values(found, part, seed=seed) for seed in distinct(found, "seed", part)]


def percent(shares: list[float]) -> str:
    """A mean with its interval."""
    return mean_interval(shares).show(100) + " %"


def best_table(plans: list[str], found: Records) -> Table:
    """The best recipes against the dense network and against the control, seed by seed."""
    columns = ("dense", "control", "pruned", "loss to dense", "loss to control")
    shown = Table("Best recipe, test accuracy in %; losses in points", ("recipe", *columns))
    for plan in plans:
        mine = [record for record in found if record["variant"] == plan]
        epochs = {
            at: values(mine, "epochs", sparsity=at)[0]
            for at in distinct(mine, "sparsity", "epochs")
        }
        last = list(epochs)[-1]
        dense, pruned = values(mine, "dense"), values(mine, "retrained", sparsity=last)
        control = values(found, "retrained", variant=CONTROL, sparsity=last)
        told = (
            dense, control, pruned,
            [a - b for a, b in zip(dense, pruned, strict=True)],
            [a - b for a, b in zip(control, pruned, strict=True)],
        )  # fmt: skip
        rounds = ", ".join(f"{sparsity:.1%} ({count})" for sparsity, count in epochs.items())
        shown.rows.append((f"{plan}: {rounds}", *(mean_interval(one).show(100, 2) for one in told)))
    return shown


def figure(settings: Settings, runs: list[dict[str, Any]]) -> Any:
    """Accuracy and spectra against the sparsity of the rounds, of each ladder."""
    ladders = {run["plan"]: run for run in runs if run["name"] == "ladder"}
    ladders = ladders or {run["plan"]: run for run in runs if run["plan"] != CONTROL}
    drawn, axes = panels(f"Prune and retrain, {settings.label}", 3, len(ladders))
    for place, plan in enumerate(ladders):
        mine = [run for run in runs if run["plan"] == plan]
        left = [1.0 - one["requested"] for one in mine[0]["rounds"]]
        accuracies, kept_, recovered = axes[3 * place : 3 * place + 3]
        for index, part in enumerate(("pruned", "retrained")):
            found = np.array(
                [[one[f"accuracy_{part}"][TEST] for one in run["rounds"]] for run in mine]
            )
            accuracies.plot(left, 100 * found.mean(0), **style(index), label=part)
        dense = 100 * float(np.mean([run["dense"] for run in mine]))
        accuracies.axhline(dense, color="grey", linewidth=0.8, label="dense")
        accuracies.set(title=plan, ylabel="test accuracy (%)")
        for axis, key in ((kept_, "kept"), (recovered, "recovered")):
            for index, name in enumerate(mine[0]["rounds"][0][key]):
                shares = np.array([[one[key][name] for one in run["rounds"]] for run in mine])
                axis.plot(left, 100 * shares.mean(0), **style(index), label=name)
            axis.axhline(100 * COLLAPSE, color="grey", linewidth=0.8)
            axis.set(title=f"spectrum {key} (%)", ylim=(0, 102))
        for axis in (accuracies, kept_, recovered):
            falling_share(axis)
        accuracies.legend(fontsize=7)
        recovered.legend(fontsize=5 if len(mine[0]["rounds"][0]["kept"]) > 6 else 7)
    return drawn
